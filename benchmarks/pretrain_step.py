"""wav2vec 2.0 BASE in f32: our training step against `transformers` + torch, same shapes, same run.

    python benchmarks/pretrain_step.py [--batch 2] [--seconds 5] [--repeats 5] [--steps 4]
        [--memory huge|small|kept]

A step is forward, backward and Adam update with dropout, masking, 100 negatives a frame and the
Gumbel quantiser; both sides run all layers (no layer drop), at the published sizes. Theirs gets its
masks and negatives ready made; ours draws them within the step. "forward" is the encoder alone,
without dropout. Each side has a process of its own, and they take turns of `--steps` steps on end,
as training has them: one more goes before, untimed, for memory that a process gave back is taken
from it while the other has its turn (a virtual machine hands it to its host, and takes a
millisecond or two for each 2 MiB to get it back). Both have memory in huge pages, which the
`jaxclone` command asks for; `small`: neither; `kept`: huge pages, and nothing is given back by
either, which leaves the arithmetic alone. Prints one JSON line: seconds of audio a second of each,
and the ratios of ours to theirs, medians over the repetitions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

from jaxclone.cli.memory import HUGE_PAGES, TUNABLES

Timed = dict[str, Callable[[], object]]
ALL = 1 << 34
MEMORY = {
    "huge": HUGE_PAGES,
    "small": "glibc.malloc.hugetlb=0",
    "kept": f"{HUGE_PAGES}:glibc.malloc.arena_max=1"
    f":glibc.malloc.mmap_threshold={ALL}:glibc.malloc.trim_threshold={ALL}",
}
RATE, NEGATIVES = 16_000, 100


def jaxclone(waveform: np.ndarray) -> Timed:
    import jax

    from jaxclone import config as configs
    from jaxclone.models.wav2vec2 import Wav2Vec2Encoder, Wav2Vec2PretrainingConfig
    from jaxclone.sharding.mesh import MeshConfig, activate, make_mesh
    from jaxclone.train.program import Program
    from jaxclone.types import Batch

    config = configs.load("pretrain/wav2vec2_base")
    sizes = Wav2Vec2PretrainingConfig.base()
    encoder = dataclasses.replace(sizes.encoder, layer_drop=0.0)
    config = dataclasses.replace(
        config, model=dataclasses.replace(sizes, encoder=encoder), precision="f32"
    )
    mesh = make_mesh(MeshConfig())
    rows, samples = waveform.shape
    length = np.full(rows, samples, np.int32)
    whole = np.arange(rows, dtype=np.int32)
    batch = Batch(waveform=waveform, length=length, speaker=whole, example=whole)
    with activate(mesh):
        program = Program(config.task(), mesh, 0)
        state = program.init({})
    network = Wav2Vec2Encoder(encoder)
    forward = jax.jit(lambda params: network.apply({"params": params}, waveform, length).output)

    def step() -> None:
        nonlocal state
        with activate(mesh):
            state, metrics, _ = program.step(state, program.put(batch), (False, False))
            jax.block_until_ready((state.model.params, metrics))

    return {
        "step": step,
        "forward": lambda: forward(state.model.params["encoder"]).block_until_ready(),
    }


def transformers(waveform: np.ndarray) -> Timed:
    import torch
    from transformers import Wav2Vec2Config as TheirConfig
    from transformers import Wav2Vec2ForPreTraining
    from transformers.models.wav2vec2.modeling_wav2vec2 import (
        _compute_mask_indices,
        _sample_negative_indices,
    )

    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA takes
    config = TheirConfig(layerdrop=0.0, feat_extract_norm="group")
    model = Wav2Vec2ForPreTraining(config)
    optimizer = torch.optim.Adam(model.parameters(), 5e-4, (0.9, 0.98), 1e-6)
    frames = int(model._get_feat_extract_output_lengths(waveform.shape[1]))
    shape = (len(waveform), frames)
    np.random.seed(0)  # noqa: NPY002 - their masks draw from it
    mask = _compute_mask_indices(shape, 0.65, 10, min_masks=2)
    negatives = torch.from_numpy(_sample_negative_indices(shape, NEGATIVES, mask))
    masked, samples = torch.from_numpy(mask), torch.from_numpy(waveform)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        output = model(samples, mask_time_indices=masked, sampled_negative_indices=negatives)
        (output.loss / masked.sum()).backward()
        optimizer.step()

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            model.wav2vec2(samples)

    return {"step": step, "forward": forward}


def serve(name: str, shape: tuple[int, int], pipe: Connection) -> None:
    """Times one side: for a kind of work and a count, sends the seconds of one in a row of them."""
    waveform = np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)
    timed = {"jaxclone": jaxclone, "transformers": transformers}[name](waveform)
    while request := pipe.recv():
        work, count = request
        timed[work]()
        start = time.perf_counter()
        for _ in range(count):
            timed[work]()
        pipe.send((time.perf_counter() - start) / count)


def main() -> None:
    """Times the two in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--memory", choices=MEMORY, default="huge")
    options = parser.parse_args()
    os.environ[TUNABLES] = MEMORY[options.memory]  # read by the processes that are started
    shape = (options.batch, int(options.seconds * RATE))
    spawn = multiprocessing.get_context("spawn")
    contestants: dict[str, Connection] = {}
    for name in ("transformers", "jaxclone"):
        contestants[name], there = spawn.Pipe()
        spawn.Process(target=serve, args=(name, shape, there), daemon=True).start()
    result: dict[str, object] = {
        "benchmark": "pretrain_step",
        "batch": options.batch,
        "seconds": options.seconds,
        "memory": options.memory,
    }
    for work in ("forward", "step"):
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for repeat in range(options.repeats + 1):
            for name, pipe in contestants.items():
                pipe.send((work, options.steps))
                seconds = pipe.recv()
                if repeat:  # the first ones compile and warm up
                    times[name].append(seconds)
        audio = options.batch * options.seconds
        result[work] = {
            "audio_seconds_per_second": {
                name: round(audio / statistics.median(taken), 3) for name, taken in times.items()
            },
            "over_transformers": round(
                statistics.median(a / b for a, b in zip(times["transformers"], times["jaxclone"])),
                3,
            ),
        }
    for pipe in contestants.values():
        pipe.send(None)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
