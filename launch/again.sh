#!/usr/bin/env bash
# Runs a command, and again as long as it ends with 75: it was stopped or lost a process, what it
# had done is saved, and the same command continues. So it is after 134 and 137, an abort or a kill:
# where process 0 of several dies, JAX aborts those that hear of it there first. But these may have
# a cause that lasts, such as too little memory, and lead to few starts only.
#
#     launch/again.sh jaxclone train CONFIG --out RUN [--a.b VALUE ...]
#
# TIMES (default 100) bounds the starts, CRASHES (default 5) those that follow one another after 134
# or 137; PAUSE (default 10) is the seconds between two.
set -u
crashes=0
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
    [[ -z $stopped ]] || exit "$code"
    case $code in
        75) crashes=0 ;;
        134 | 137) ((++crashes <= ${CRASHES:-5})) || exit "$code" ;;
        *) exit "$code" ;;
    esac
    sleep "${PAUSE:-10}"
done
exit "$code"
