#!/usr/bin/env bash
# Runs a command, and again as long as it ends with 75: it was stopped or lost a process, what it
# had done is saved, and the same command continues.
#
#     launch/again.sh jaxclone train CONFIG --out RUN [--a.b VALUE ...]
#
# TIMES (default 100) bounds the starts, PAUSE (default 10) is the seconds between two.
set -u
for ((start = 1; start <= ${TIMES:-100}; start++)); do
    # In the background and waited for: a trap runs at once, so that a signal reaches the command.
    "$@" &
    child=$!
    stopped=""
    trap 'stopped=yes; kill -TERM "$child" 2>/dev/null' TERM INT
    wait "$child"
    code=$?
    while kill -0 "$child" 2>/dev/null; do # the wait was cut short by the signal
        wait "$child"
        code=$?
    done
    if [[ $code != 75 || -n $stopped ]]; then
        exit "$code"
    fi
    sleep "${PAUSE:-10}"
done
exit 75
