#!/usr/bin/env bash
# All GPUs of this host, by one process, until the run is done.
#
#     launch/gpu_host.sh CONFIG --out RUN [--a.b VALUE ...]
#
# Choose GPUs with CUDA_VISIBLE_DEVICES. The mesh takes them all as copies of the model
# (--mesh.data -1); shard a large model over them with --mesh.data 1 --mesh.fsdp -1.
set -eu
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
exec "$(dirname "$0")/again.sh" jaxclone train "$@"
