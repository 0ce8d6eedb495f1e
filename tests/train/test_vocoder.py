from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.build import build
from data_pipelines.loader import CropConfig
from data_pipelines.manifest import Row
from jaxclone import rng
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel
from jaxclone.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from jaxclone.losses.spectral import mel_l1
from jaxclone.models.discriminators import (
    ConvSpec,
    DiscriminatorConfig,
    Discriminators,
    MelGANDiscriminatorConfig,
)
from jaxclone.models.hifigan import Generator, HiFiGANConfig
from jaxclone.models.melgan import MelGANConfig
from jaxclone.nn.weight_norm import power_iteration
from jaxclone.train.optim import OptimConfig
from jaxclone.train.state import GanState
from jaxclone.train.vocoder import VocoderConfig
from jaxclone.types import Batch, UserError

SAMPLES = 400
OPTIM = OptimConfig(learning_rate=1e-3, betas=(0.8, 0.99))
CONFIG = VocoderConfig(
    audio=AudioSpec(n_fft=64, hop_length=20, win_length=64, n_mels=8),
    generator=HiFiGANConfig.tiny(),
    discriminators=DiscriminatorConfig.tiny(),
    resolutions=((32, 8, 32), (64, 16, 64)),
    generator_optim=OPTIM,
    discriminator_optim=OPTIM,
)
# MelGAN's way, with everything that can be chosen chosen otherwise.
OTHER = dataclasses.replace(
    CONFIG,
    audio=AudioSpec(n_fft=64, hop_length=24, win_length=64, n_mels=8, log="log10", power_floor=0.0),
    generator=MelGANConfig.tiny(bands=4),
    discriminators=MelGANDiscriminatorConfig.tiny(),
    gan_loss="hinge",
    adversarial_weight=2.5,
    mel_weight=0.0,
    stft_weight=1.0,
    band_resolutions=((16, 4, 16), (32, 8, 32)),
    discriminator_every=2,
    ema=0.9,
)


def _batch(speech: np.ndarray, size: int = 4, start: int = 4000) -> Batch:
    starts = start + 1000 * np.arange(size)
    return Batch(
        waveform=np.stack([speech[i : i + SAMPLES] for i in starts]),
        length=np.full(size, SAMPLES, np.int32),
        speaker=np.full(size, -1, np.int32),
        example=np.arange(size, dtype=np.int32),
    )


def _start(config: VocoderConfig) -> GanState:
    task = config.task()
    return nn.unbox(jax.jit(lambda key: task.init(key, {}))(rng.root(0)))


def _gradient(model) -> dict:
    """The gradient of a first step, which Adam's first moment is a multiple of."""
    return optax.tree.get(model.opt_state, "mu")


def _assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.fixture(scope="module")
def stepped(speech: np.ndarray):
    """(state, batch, state after one step, metrics) of the plain GAN."""
    state, batch = _start(CONFIG), _batch(speech)
    return state, batch, *jax.jit(CONFIG.task().step)(state, batch)


def test_discriminators_are_updated_first_and_the_generator_against_the_updated(stepped):
    """The gradients of one step, from the definition: two losses, differentiated one by one."""
    state, batch, after, metrics = stepped
    generator, judges = Generator(CONFIG.generator), Discriminators(CONFIG.discriminators)
    mel = log_mel(batch.waveform, CONFIG.audio)
    spectral = power_iteration(
        state.discriminator.params, state.discriminator.variables["spectral"]
    )

    def judge(params, waveform):
        return judges.apply({"params": params, "spectral": spectral}, waveform)

    def judging(params, fake):
        real, fake = judge(params, batch.waveform), judge(params, fake)
        return discriminator_loss([r[0] for r in real], [f[0] for f in fake])[0]

    def speaking(params, judges):
        fake = generator.apply({"params": params}, mel)
        judged, real = judge(judges, fake), judge(judges, batch.waveform)
        matching = feature_matching_loss([r[1] for r in real], [j[1] for j in judged])[0]
        convincing = generator_loss([j[0] for j in judged])[0]
        return convincing + 2 * matching + 45 * mel_l1(fake, batch.waveform, CONFIG.audio)[0]

    fake = jax.jit(generator.apply)({"params": state.generator.params}, mel)
    loss, grads = jax.jit(jax.value_and_grad(judging))(state.discriminator.params, fake)
    _assert_close(
        _gradient(after.discriminator), jax.tree.map(lambda g: 0.2 * g, grads), atol=1e-6, rtol=1e-4
    )
    assert float(metrics["discriminator_loss"]) == pytest.approx(float(loss), rel=1e-5)

    updated = after.discriminator.params
    loss, grads = jax.jit(jax.value_and_grad(speaking))(state.generator.params, updated)
    _assert_close(
        _gradient(after.generator), jax.tree.map(lambda g: 0.2 * g, grads), atol=1e-5, rtol=1e-3
    )
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    _assert_close(after.discriminator.variables["spectral"], spectral, atol=1e-6)


def test_a_step_reports_what_a_run_is_judged_by(stepped):
    *_, metrics = stepped
    assert set(metrics) >= {
        "loss",
        "mel_l1",
        "adversarial_loss",
        "feature_matching_loss",
        "discriminator_loss",
        "grad_norm",
        "discriminator_grad_norm",
        "learning_rate",
    }
    assert all(np.shape(value) == () and np.isfinite(value) for value in metrics.values())


def test_microbatches_give_the_gradients_of_the_whole_batch(stepped):
    state, batch, whole, metrics = stepped
    config = dataclasses.replace(CONFIG, microbatches=2)
    parts, more = jax.jit(config.task().step)(state, batch)
    for name in ("generator", "discriminator"):
        _assert_close(
            _gradient(getattr(parts, name)), _gradient(getattr(whole, name)), atol=2e-5, rtol=2e-4
        )
    assert set(more) == set(metrics)
    for name in ("loss", "mel_l1", "discriminator_loss", "feature_matching_loss"):
        assert float(more[name]) == pytest.approx(float(metrics[name]), rel=1e-4)


def test_before_the_adversarial_start_only_the_spectral_losses_train(speech: np.ndarray):
    config = dataclasses.replace(CONFIG, adversarial_start=2, stft_weight=1.0)
    step = jax.jit(config.task().step)
    start, batch = _start(config), _batch(speech)
    second, _ = step(start, batch)
    second, metrics = step(second, batch)
    _assert_close(second.discriminator.params, start.discriminator.params, rtol=0)
    assert float(metrics["discriminator_loss"]) == float(metrics["adversarial_loss"]) == 0
    assert float(metrics["loss"]) == pytest.approx(
        45 * float(metrics["mel_l1"]) + float(metrics["stft_loss"]), rel=1e-5
    )
    third, metrics = step(second, batch)
    assert float(metrics["discriminator_loss"]) > 0
    assert float(metrics["adversarial_loss"]) > 0
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), third.discriminator.params, start.discriminator.params
    )
    assert all(jax.tree.leaves(moved))


def test_training_brings_the_copies_closer(speech: np.ndarray):
    config = dataclasses.replace(
        CONFIG, generator_optim=dataclasses.replace(OPTIM, learning_rate=5e-3)
    )
    task, batch = config.task(), _batch(speech)
    step, evaluate = jax.jit(task.step), jax.jit(task.evaluate)
    state = _start(config)
    before = evaluate(state, batch)
    for _ in range(60):
        state, _ = step(state, batch)
    after = evaluate(state, batch)
    assert float(after["mel_l1"]) < 0.6 * float(before["mel_l1"])
    assert float(after["stft_loss"]) < float(before["stft_loss"])


def test_evaluation_does_not_depend_on_padding(speech: np.ndarray):
    task, state = CONFIG.task(), _start(CONFIG)
    short = _batch(speech, size=2)
    padded = short.replace(waveform=np.pad(short.waveform, ((0, 0), (0, 170))))
    alone, together = jax.jit(task.evaluate)(state, short), jax.jit(task.evaluate)(state, padded)
    for name in ("mel_l1", "stft_loss"):
        assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-4)


def test_padding_of_a_crop_is_silent_on_both_sides(speech: np.ndarray):
    """What the generator would put into the padding has no part in any loss."""
    batch = _batch(speech)
    length = np.array([SAMPLES, 200, SAMPLES, 100], np.int32)
    waveform = np.where(np.arange(SAMPLES) < length[:, None], batch.waveform, 0)
    batch = batch.replace(waveform=waveform, length=length)
    copy = CONFIG.task().showcase(_start(CONFIG), jax.tree.map(lambda x: x[1:], batch))["copy"]
    assert np.all(copy.data[200:] == 0)
    assert np.any(copy.data[:200] != 0)


@pytest.fixture(scope="module")
def other(speech: np.ndarray):
    """(state before, batch, state after, metrics) of a second step of OTHER."""
    step, batch = jax.jit(OTHER.task().step), _batch(speech[8:])
    batch = batch.replace(waveform=batch.waveform[:, :384], length=np.full(4, 384, np.int32))
    state, metrics = step(_start(OTHER), batch)
    assert float(metrics["discriminator_loss"]) == 0  # every second step, the first is none
    return state, batch, *step(state, batch)


def test_other_losses_train_both(other):
    state, _, after, metrics = other
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)),
        (after.generator.params, after.discriminator.params),
        (state.generator.params, state.discriminator.params),
    )
    assert all(jax.tree.leaves(moved))
    assert all(np.isfinite(value) for value in metrics.values())
    assert float(metrics["loss"]) == pytest.approx(
        (float(metrics["stft_loss"]) + float(metrics["band_stft_loss"])) / 2
        + 2.5 * float(metrics["adversarial_loss"])
        + 2 * float(metrics["feature_matching_loss"]),
        rel=1e-5,
    )


def test_microbatches_give_the_gradients_of_the_whole_batch_with_other_losses(other):
    state, batch, whole, metrics = other
    config = dataclasses.replace(OTHER, microbatches=2)
    parts, more = jax.jit(config.task().step)(state, batch)
    for name in ("generator", "discriminator"):
        _assert_close(
            _gradient(getattr(parts, name)), _gradient(getattr(whole, name)), atol=2e-5, rtol=2e-4
        )
    assert set(more) == set(metrics)
    _assert_close(parts.ema, whole.ema, atol=1e-4)


def test_the_mean_of_the_parameters_is_what_speaks(other):
    state, batch, after, _ = other
    task = OTHER.task()
    # Early on, the mean is of few steps: 2 / 11 of it is old in the second.
    expected = jax.tree.map(
        lambda mean, new: mean * 2 / 11 + new * 9 / 11, state.ema, after.generator.params
    )
    _assert_close(after.ema, expected, atol=1e-6)
    _assert_close(task.models(after)["vocoder"], after.ema, rtol=0)
    evaluate = jax.jit(task.evaluate)
    alone = after.replace(generator=after.generator.replace(params=after.ema))
    assert float(evaluate(after, batch)["mel_l1"]) == float(evaluate(alone, batch)["mel_l1"])
    begun = nn.unbox(task.init(rng.root(1), task.models(after)))
    _assert_close((begun.ema, begun.generator.params), (after.ema, after.ema), rtol=0)


def test_the_generator_may_be_updated_less_often(speech: np.ndarray):
    config = dataclasses.replace(CONFIG, generator_every=2)
    step, state, batch = jax.jit(config.task().step), _start(config), _batch(speech)
    first, metrics = step(state, batch)
    _assert_close(first.generator, state.generator, rtol=0)
    assert float(metrics["loss"]) == 0
    assert float(metrics["discriminator_loss"]) > 0
    second, metrics = step(first, batch)
    assert float(metrics["loss"]) > 0
    adam, *_ = second.generator.opt_state
    assert int(adam.count) == 1
    adam, *_ = second.discriminator.opt_state
    assert int(adam.count) == 2


def test_spectral_norms_hold_before_the_discriminators_learn(speech: np.ndarray):
    # Their vectors are random at first and not of the kernel: it would be divided by next to none.
    layers = (ConvSpec(64, 15, 4), ConvSpec(64, 15, 4), ConvSpec(64, 15, 4))
    judges = dataclasses.replace(CONFIG.discriminators, scale_layers=layers)
    config = dataclasses.replace(CONFIG, discriminators=judges, discriminator_every=2)
    _, metrics = jax.jit(config.task().step)(_start(config), _batch(speech))
    assert float(metrics["discriminator_loss"]) == 0  # not due yet
    assert float(metrics["adversarial_loss"]) < 100


def test_the_rate_falls_by_the_epochs_of_the_data(tmp_path: Path, speech: np.ndarray):
    rows = []
    for number in range(7):
        path = tmp_path / f"{number}.wav"
        io.write(path, np.roll(speech, 1000 * number), 16_000)
        rows.append(Row(str(path), split="train"))
    audio = AudioSpec()
    build(rows, tmp_path / "corpus", audio, f0=False, workers=1)
    data = CropConfig(str(tmp_path / "corpus"), batch_size=2)
    config = VocoderConfig(audio=audio, generator=HiFiGANConfig.mini(), data=data)
    _, schedule = config.optimizer(config.generator_optim, 100, 1)
    rates = [float(schedule(step)) for step in (0, 2, 3, 6)]  # 7 recordings, 3 whole batches
    assert rates == pytest.approx([2e-4, 2e-4, 2e-4 * 0.999, 2e-4 * 0.999**2])
    _, schedule = config.optimizer(config.generator_optim, 100, 3)  # an update an epoch
    assert float(schedule(1)) == pytest.approx(2e-4 * 0.999)
    _, schedule = VocoderConfig().optimizer(config.generator_optim, 100, 1)
    assert float(schedule(808)) == pytest.approx(2e-4)
    assert float(schedule(809)) == pytest.approx(2e-4 * 0.999)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discriminator_every": 0}, "discriminator_every must be above 0"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"feature_weight": -1.0}, "feature_weight must be 0 or more"),
        ({"mel_weight": math.inf}, "mel_weight must be finite, got inf"),
        ({"band_resolutions": ((16, 4, 16),)}, "a generator with bands"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes).task()


def test_showcase_sets_the_copy_beside_the_truth(stepped):
    state, batch, *_ = stepped
    media = CONFIG.task().showcase(state, batch)
    assert {name: m.kind for name, m in media.items()} == {
        "truth": "audio",
        "copy": "audio",
        "truth_mel": "image",
        "copy_mel": "image",
    }
    assert media["copy"].data.shape == (SAMPLES,)
    assert media["copy_mel"].data.shape == (8, SAMPLES // 20)


def test_a_run_holds_the_vocoder_and_may_start_from_one(stepped):
    _, _, after, _ = stepped
    task = CONFIG.task()
    assert task.model_configs == {"vocoder": CONFIG.generator}
    begun = nn.unbox(task.init(rng.root(1), task.models(after)))
    _assert_close(begun.generator.params, after.generator.params, rtol=0)
    assert int(begun.step) == 0


def test_a_generator_of_another_hop_is_refused():
    config = dataclasses.replace(CONFIG, generator=HiFiGANConfig.v1())
    with pytest.raises(UserError, match=r"= 256 samples a frame, the AudioSpec has hop_length 20"):
        config.task()


def test_half_precision_trains_with_full_precision_parameters(stepped):
    state, batch, _, metrics = stepped
    config = dataclasses.replace(CONFIG, precision="bf16")
    after, more = jax.jit(config.task().step)(state, batch)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(after.generator.params))
    assert float(more["mel_l1"]) == pytest.approx(float(metrics["mel_l1"]), rel=0.05)
