#!/usr/bin/env bash
# A run on all hosts of a Cloud TPU slice.
#
#     TPU=NAME ZONE=ZONE launch/tpu_pod.sh CONFIG --out gcsfuse/or/nfs/RUN [--a.b VALUE ...]
#
# jaxclone must be installed on the hosts (INSTALL=yes does it: pip install 'jaxclone[tpu]'), and
# the corpus and the run folder must lie on what all of them have mounted. JAX finds the hosts by the
# metadata of the slice. A spot slice that is taken away ends this command; when it is back, the same
# command continues the run.
set -eu
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}"

on_all() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" ${PROJECT:+--project "$PROJECT"} \
        --worker=all --command "$1"
}

if [[ ${INSTALL:-} == yes ]]; then
    on_all "python3 -m pip install --user 'jaxclone[tpu]'"
fi
crashes=0
for ((start = 1; start <= ${TIMES:-100}; start++)); do
    code=0
    # What was left by an earlier start would hold the chips. The shell stays to tell of a signal
    # that ended the command: ssh itself would say 255.
    on_all "pkill -TERM -f '[b]in/jaxclone train' && sleep 60; PATH=\$HOME/.local/bin:\$PATH jaxclone train $(printf '%q ' "$@"); exit \$?" || code=$?
    case $code in # as in again.sh
        75) crashes=0 ;;
        134 | 137) ((++crashes <= ${CRASHES:-5})) || exit "$code" ;;
        *) exit "$code" ;;
    esac
    sleep "${PAUSE:-10}"
done
exit "$code"
