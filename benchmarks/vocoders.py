"""Vocoders: ours, and PyTorch's where it has the same network, same mels, same run.

    python benchmarks/vocoders.py --vocoders v1 v2 v3 --seconds 1 5 20
    python benchmarks/vocoders.py --step 2
    python benchmarks/vocoders.py --quality CORPUS --runs RUNS

Prints one JSON line. Speaking: seconds of work for a second of audio (the real-time factor), f32,
batch 1, and how many times as fast ours is; PyTorch's generator has its weight norm removed and
runs in inference mode on as many threads as there are cores. `--step N` times a training step of
HiFi-GAN V1 instead, N segments of 8192 samples: both updates and their optimisers, on either side.
`--quality` trains the size `mini` of every vocoder on a corpus of 16 kHz, hours on a CPU, and tells
how good their copies of its split `test` are; what is trained already is not trained again.

Medians over interleaved repetitions. Weights are random, which changes no time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from _quality import TRAINED, compare
from _torch_hifigan import Discriminators, Generator
from torch.nn import functional as F

from jaxclone import config as configs
from jaxclone import rng
from jaxclone.audio.griffin_lim import griffin_lim
from jaxclone.audio.spec import hifigan_22k
from jaxclone.audio.spectral import mel_filterbank
from jaxclone.models.diffwave import DiffWaveConfig
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.models.melgan import MelGANConfig
from jaxclone.models.vocoder import AnyGeneratorConfig, make_generator
from jaxclone.models.vocos import VocosConfig
from jaxclone.sharding.mesh import MeshConfig, activate, make_mesh
from jaxclone.synthesis.vocoder import Vocoder
from jaxclone.train.program import Program
from jaxclone.types import Batch

Timed = dict[str, Callable[[], object]]
SPEC = hifigan_22k()
VOCODERS: dict[str, AnyGeneratorConfig | None] = {
    "v1": HiFiGANConfig.v1(),
    "v2": HiFiGANConfig.v2(),
    "v3": HiFiGANConfig.v3(),
    "melgan": MelGANConfig.published(),
    "multiband_melgan": MelGANConfig.multiband(),
    "vocos": VocosConfig(SPEC),
    "diffwave": DiffWaveConfig.base(),
    "griffin_lim": None,
}
SEGMENT = 8192


def speakers(name: str) -> Callable[[np.ndarray], Timed]:
    """What speaks a mel f32[f, m]: ours, and PyTorch's where there is one."""
    config = VOCODERS[name]
    if config is None:
        key = rng.stream(rng.root(0), "vocoders")
        return lambda mel: {
            "jaxclone": lambda: griffin_lim(jnp.asarray(mel), SPEC, key).block_until_ready()
        }
    params = jax.jit(make_generator(config).init)(
        rng.stream(rng.root(0), "vocoders"), jnp.zeros((1, 4, SPEC.n_mels))
    )["params"]
    ours = Vocoder(config, params, SPEC)
    theirs = Generator(config).eval() if isinstance(config, HiFiGANConfig) else None

    def timed(mel: np.ndarray) -> Timed:
        contestants: Timed = {"jaxclone": lambda: ours(mel)}
        if theirs is not None:
            batch = torch.from_numpy(mel.T[None].copy())

            def speak() -> torch.Tensor:
                with torch.inference_mode():
                    return theirs(batch)

            contestants["torch"] = speak
        return contestants

    return timed


def our_step(waveform: np.ndarray) -> Callable[[], object]:
    """A step of the published config, as the training loop takes it."""
    config = dataclasses.replace(configs.load("vocoder/hifigan_v1"), precision="f32")
    mesh = make_mesh(MeshConfig())
    rows, samples = waveform.shape
    whole = np.arange(rows, dtype=np.int32)
    length = np.full(rows, samples, np.int32)
    batch = Batch(waveform=waveform, length=length, speaker=whole, example=whole)
    with activate(mesh):
        program = Program(config.task(), mesh, 0)
        state = program.init({})

    def step() -> None:
        nonlocal state
        with activate(mesh):
            state, metrics, _ = program.step(state, program.put(batch), (False, False))
            jax.block_until_ready((state.generator.params, metrics))

    return step


def torch_step(waveform: np.ndarray) -> Callable[[], object]:
    """The published step (jik876/hifi-gan `train.py`): discriminators, then generator."""
    config = configs.load("vocoder/hifigan_v1")
    generator = Generator(config.generator, trained=True)
    judges = Discriminators(config.discriminators)
    adam = {"lr": 2e-4, "betas": (0.8, 0.99), "weight_decay": 0.01}
    of_generator = torch.optim.AdamW(generator.parameters(), **adam)
    of_judges = torch.optim.AdamW(judges.parameters(), **adam)
    truth = torch.from_numpy(waveform)
    pad = (SPEC.n_fft - SPEC.hop_length) // 2
    window = torch.hann_window(SPEC.win_length)
    filters = torch.from_numpy(np.array(mel_filterbank(SPEC)))

    def log_mel(x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x[:, None], (pad, pad), mode="reflect")[:, 0]
        spectrum = torch.stft(
            x, SPEC.n_fft, SPEC.hop_length, window=window, center=False, return_complex=True
        )
        magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
        return torch.log(torch.clamp(filters @ magnitude, min=SPEC.floor))

    def step() -> None:
        mel = log_mel(truth)
        fake = generator(mel)
        of_judges.zero_grad()
        real_maps, fake_maps = judges(truth), judges(fake.detach())
        sum(
            ((r[-1] - 1) ** 2).mean() + (f[-1] ** 2).mean() for r, f in zip(real_maps, fake_maps)
        ).backward()
        of_judges.step()
        of_generator.zero_grad()
        with torch.no_grad():
            real_maps = judges(truth)
        fake_maps = judges(fake)
        loss = 45 * F.l1_loss(log_mel(fake), mel)
        for r, f in zip(real_maps, fake_maps):
            loss = loss + ((f[-1] - 1) ** 2).mean()
            loss = loss + 2 * sum(F.l1_loss(b, a) for a, b in zip(r, f))
        loss.backward()
        of_generator.step()

    return step


def measure(contestants: Timed, repeats: int) -> dict[str, list[float]]:
    """Seconds of each, in turn; the first of each compiles and warms up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return times


def over_torch(times: dict[str, list[float]]) -> dict[str, float]:
    """How many times as fast ours is, where there is something to compare with."""
    if "torch" not in times:
        return {}
    ratio = statistics.median(b / a for a, b in zip(times["jaxclone"], times["torch"]))
    return {"over_torch": round(ratio, 3)}


def main(args: Sequence[str] | None = None) -> None:
    """Times one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vocoders", nargs="+", choices=VOCODERS, default=list(VOCODERS))
    parser.add_argument("--seconds", nargs="+", type=float, default=[1.0, 5.0, 20.0])
    parser.add_argument("--step", type=int, default=0, help="segments of a training step to time")
    parser.add_argument("--quality", type=Path, help="a corpus to train on and to copy")
    parser.add_argument("--runs", type=Path, default=Path("runs/vocoders"))
    parser.add_argument("--trained", nargs="*", default=["griffin_lim", *TRAINED])
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(args)
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA takes
    noise = np.random.default_rng(0)
    result: dict[str, object] = {"benchmark": "vocoders"}
    if options.quality:
        result |= compare(
            options.quality, options.runs, options.trained, train_only=options.train_only
        )
        print(json.dumps(result))
        return
    if options.step:
        waveform = noise.normal(0, 0.1, (options.step, SEGMENT)).astype(np.float32)
        times = measure(
            {"jaxclone": our_step(waveform), "torch": torch_step(waveform)}, options.repeats
        )
        seconds = {name: round(statistics.median(t), 3) for name, t in times.items()}
        result |= {"step": options.step, "seconds": seconds, **over_torch(times)}
        print(json.dumps(result))
        return
    for name in options.vocoders:
        speak, rows = speakers(name), {}
        for seconds in options.seconds:
            frames = max(1, round(seconds * SPEC.sample_rate / SPEC.hop_length))
            mel = noise.normal(-5, 2, (frames, SPEC.n_mels)).astype(np.float32)
            times = measure(speak(mel), options.repeats)
            audio = frames * SPEC.hop_length / SPEC.sample_rate
            factors = {who: round(statistics.median(t) / audio, 5) for who, t in times.items()}
            rows[f"{seconds:g} s"] = {"real_time_factor": factors, **over_torch(times)}
        result[name] = rows
    print(json.dumps(result))


if __name__ == "__main__":
    main()
