"""Runs that use frozen models: the perceptual loss, and a vocoder behind a converter."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from jaxclone import rng
from jaxclone.adapt.enroll import AdaptConfig
from jaxclone.audio import pitch
from jaxclone.audio.perturb import PerturbConfig
from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel
from jaxclone.losses.mels import MelLossConfig
from jaxclone.models.converter import ConverterConfig
from jaxclone.models.discriminators import DiscriminatorConfig
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.vocos import VocosConfig
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.train.conversion import ConversionConfig
from jaxclone.train.helpers import converted_mel, windows
from jaxclone.train.meta import MetaConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.train.vocoder import VocoderConfig
from jaxclone.types import Batch, Episode, UserError

SPEC = AudioSpec(n_fft=64, hop_length=20, win_length=64, n_mels=8)
OPTIM = OptimConfig(learning_rate=1e-3, betas=(0.8, 0.99))
SIZES = {
    "encoder": dataclasses.replace(Wav2Vec2Config.tiny(), mel=SPEC),
    "speaker": SpeakerEncoderConfig.tiny(),
    "converter": ConverterConfig.tiny(),
}
VOCODER = VocoderConfig(
    audio=SPEC,
    generator=HiFiGANConfig.tiny(),
    discriminators=DiscriminatorConfig.tiny(),
    resolutions=((32, 8, 32), (64, 16, 64)),
    generator_optim=OPTIM,
    discriminator_optim=OPTIM,
    **SIZES,
)
COMPOSITE = dataclasses.replace(
    VOCODER, mel_weight=1.0, adversarial_weight=0.1, feature_weight=0.0, perceptual_weight=0.01
)
PITCHED = dataclasses.replace(VOCODER.data, f0=True)
BEHIND = dataclasses.replace(VOCODER, mels="converter", data=PITCHED)


@pytest.fixture(scope="module")
def batch(speech) -> Batch:
    """Four pieces of 0.1 s, the last of them half as long, with their pitch."""
    size = 1600
    length = np.array([size, size, size, size // 2], np.int32)
    waveform = np.stack([speech[i : i + size] for i in (4000, 8000, 12_000, 20_000)])
    waveform = np.where(np.arange(size) < length[:, None], waveform, 0).astype(np.float32)
    return Batch(
        waveform=waveform,
        length=length,
        speaker=np.array([0, 0, 1, 1], np.int32),
        example=np.arange(4, dtype=np.int32),
        f0=np.stack([pitch.f0(x, SPEC) for x in waveform]),
        reference=waveform[::-1],
        reference_length=length[::-1],
    )


def start(config, pretrained=None):
    task = config.task()
    return task, nn.unbox(jax.jit(lambda key: task.init(key, pretrained or {}))(rng.root(0)))


def gradient(model):
    """The gradient of a first step, which Adam's first moment is a multiple of."""
    return optax.tree.get(model.opt_state, "mu")


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.fixture(scope="module")
def composite(batch):
    task, state = start(COMPOSITE)
    return state, *jax.jit(task.step)(state, batch)


def test_the_composite_loss_is_what_it_says(composite):
    _, _, metrics = composite
    assert float(metrics["perceptual_loss"]) > 0
    assert float(metrics["loss"]) == pytest.approx(
        float(
            metrics["mel_l1"]
            + 0.1 * metrics["adversarial_loss"]
            + 0.01 * metrics["perceptual_loss"]
        ),
        rel=1e-5,
    )


def test_what_is_frozen_stays_and_is_not_optimised(composite, batch):
    state, after, _ = composite
    assert set(state.frozen) == {"encoder"}
    np.testing.assert_array_equal(flat(after.frozen), flat(state.frozen))
    plain = start(VOCODER)[1]
    assert len(flat(after.generator.opt_state)) == len(flat(plain.generator.opt_state))
    assert plain.frozen == {}
    task = COMPOSITE.task()
    assert set(task.models(after)) == {"vocoder", "discriminators"}
    assert task.helpers == {"encoder": COMPOSITE.encoder}


def test_the_perceptual_gradient_reaches_the_generator(composite, batch):
    state, after, _ = composite
    heavier = dataclasses.replace(COMPOSITE, perceptual_weight=1.01)
    without = dataclasses.replace(COMPOSITE, perceptual_weight=0.0)
    heavy, _ = jax.jit(heavier.task().step)(state, batch)
    light, _ = jax.jit(without.task().step)(state, batch)
    # The gradient is linear in the weight.
    one, hundred = (
        flat(gradient(x.generator)) - flat(gradient(light.generator)) for x in (after, heavy)
    )
    assert np.abs(hundred).max() > 1e-4
    np.testing.assert_allclose(101 * one, hundred, atol=0.02 * np.abs(hundred).max())
    np.testing.assert_allclose(
        flat(heavy.discriminator.params), flat(light.discriminator.params), atol=1e-6
    )


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(COMPOSITE, id="composite", marks=pytest.mark.slow),
        pytest.param(BEHIND, id="converter"),
    ],
)
def test_micro_batches_make_the_whole_batch(config, batch):
    config = dataclasses.replace(config, segment_seconds=0.05)
    task, state = start(config)
    whole, metrics = jax.jit(task.step)(state, batch)
    parts, more = jax.jit(dataclasses.replace(config, microbatches=2).task().step)(state, batch)
    for name in ("generator", "discriminator"):
        a, b = (flat(gradient(getattr(x, name))) for x in (whole, parts))
        np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(a).max())
    for name in ("loss", "mel_l1", *(("perceptual_loss",) if config is COMPOSITE else ())):
        assert float(more[name]) == pytest.approx(float(metrics[name]), rel=1e-4)


def test_evaluation_reports_the_perceptual_distance(composite, batch):
    state, *_ = composite
    scores = jax.jit(COMPOSITE.task().evaluate)(state, batch)
    assert np.isfinite(float(scores["perceptual_loss"]))


def test_a_run_starts_with_the_encoder_that_it_is_given(batch):
    _, state = start(COMPOSITE)
    trained = jax.tree.map(lambda x: x + 1, state.frozen["encoder"])
    _, begun = start(COMPOSITE, {"encoder": trained})
    np.testing.assert_array_equal(flat(begun.frozen["encoder"]), flat(trained))
    np.testing.assert_array_equal(flat(begun.generator.params), flat(state.generator.params))


# A vocoder behind a converter.


def test_behind_a_converter_that_gives_the_truth_training_is_the_ordinary(batch, monkeypatch):
    def truth(self, params, content, speaker, f0, frames):
        return log_mel(batch.waveform, SPEC, batch.length)

    monkeypatch.setattr(VoiceConversion, "decode", truth)
    task, state = start(BEHIND)
    ordinary, same = start(VOCODER)
    np.testing.assert_array_equal(flat(state.generator.params), flat(same.generator.params))
    (a, one), (b, other) = (jax.jit(t.step)(s, batch) for t, s in ((task, state), (ordinary, same)))
    for name in ("generator", "discriminator"):
        np.testing.assert_allclose(
            flat(getattr(a, name).params), flat(getattr(b, name).params), atol=1e-6
        )
    assert {n: float(v) for n, v in one.items()} == pytest.approx(
        {n: float(v) for n, v in other.items()}, rel=1e-5
    )


def test_the_converter_hears_each_recording_itself(batch, monkeypatch):
    """Content, pitch and length of the recording, the voice of its reference."""
    given = {}
    decode = VoiceConversion.decode

    def spy(self, params, content, speaker, f0, frames):
        given.update(content=content, speaker=speaker, f0=f0, frames=frames)
        return decode(self, params, content, speaker, f0, frames)

    monkeypatch.setattr(VoiceConversion, "decode", spy)
    _, state = start(BEHIND)
    networks = VoiceConversion(SPEC, *SIZES.values())

    @jax.jit
    def made(batch):
        mel = converted_mel(networks, state.frozen, batch)
        return mel, dict(given)

    @jax.jit
    def expected(waveform, length):
        return (
            networks.content(state.frozen, batch.waveform, batch.length),
            networks.embed(state.frozen, waveform, length),
        )

    mel, got = made(batch)
    content, voice = expected(batch.reference, batch.reference_length)
    np.testing.assert_allclose(got["content"], content, atol=1e-5)
    np.testing.assert_allclose(got["speaker"], voice, atol=1e-5)
    np.testing.assert_array_equal(got["f0"], batch.f0)
    np.testing.assert_array_equal(got["frames"], batch.length // 20)
    np.testing.assert_allclose(mel[3, 40:], np.log(SPEC.floor), rtol=1e-6)

    _, got = made(batch.replace(reference=None))
    _, own = expected(batch.waveform, batch.length)
    np.testing.assert_allclose(got["speaker"], own, atol=1e-5)
    assert np.abs(own - voice).max() > 1e-4


def test_windows_of_mel_and_waveform_belong_together():
    hop, frames = 20, np.array([80, 80, 30, 7, 0], np.int32)
    place = np.arange(80, dtype=np.float32)
    mel = np.tile(place[:, None], (5, 1, 3))
    waveform = np.tile(np.repeat(place, hop), (5, 1))
    # The second has a few samples beyond its last frame.
    length = frames * hop + np.array([0, 0, 9, 0, 0], np.int32)
    waveform = waveform * (np.arange(1600) < length[:, None])
    batch = Batch(waveform.astype(np.float32), length, frames, np.arange(5, dtype=np.int32))
    starts = set()
    for seed in range(20):
        keys = rng.per_example(rng.root(seed), batch.example)
        part, cut = jax.jit(windows, static_argnums=(3, 4))(keys, mel, batch, 16, hop)
        assert part.shape == (5, 16, 3)
        assert cut.waveform.shape == (5, 320)
        first = np.asarray(part[:, 0, 0]).astype(int)
        starts.add(first[0])
        assert (first + 16 <= np.maximum(frames, 16)).all()
        np.testing.assert_array_equal(cut.length, np.minimum(length - first * hop, 320))
        for i, n in enumerate(cut.length):
            belongs = np.repeat(np.asarray(part[i, :, 0]), hop)
            np.testing.assert_array_equal(cut.waveform[i, :n], belongs[:n])
            np.testing.assert_array_equal(cut.waveform[i, n:], 0)
    assert len(starts) > 10
    again, _ = windows(keys, mel, batch, 16, hop)
    np.testing.assert_array_equal(again, part)


@pytest.mark.slow
def test_a_vocoder_behind_a_converter_learns(batch):
    config = dataclasses.replace(
        BEHIND,
        segment_seconds=0.05,
        generator_optim=dataclasses.replace(OPTIM, learning_rate=5e-3),
    )
    task, state = start(config)
    step, evaluate = jax.jit(task.step), jax.jit(task.evaluate)
    frozen, before = flat(state.frozen), evaluate(state, batch)
    for _ in range(60):
        state, _ = step(state, batch)
    assert float(evaluate(state, batch)["mel_l1"]) < 0.8 * float(before["mel_l1"])
    np.testing.assert_array_equal(flat(state.frozen), frozen)
    assert set(task.models(state)) == {"vocoder", "discriminators"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mels": "converter"}, "needs the pitch: set data.f0 and valid.f0"),
        ({"segment_seconds": 3.0}, "between a frame and the 2 s of a crop, got 3"),
        ({"segment_seconds": 0.001}, "between a frame and the 2 s of a crop, got 0.001"),
        ({"segment_seconds": -1.0}, "segment_seconds must be 0 or more"),
        ({"perceptual_weight": 0.1, "encoder": Wav2Vec2Config.base()}, "a frame every 320 samples"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(VOCODER, **changes).task()


# Mels that a converter is trained to predict.

MEL_LOSS = MelLossConfig(
    perceptual_weight=0.5,
    stft_weight=0.5,
    resolutions=((32, 8, 32), (64, 16, 64)),
    vocoder=dataclasses.replace(VocosConfig.tiny(), audio=SPEC),
)
CONVERSION = ConversionConfig(
    audio=SPEC, **SIZES, mel_loss=MEL_LOSS, speaker_weight=0.0, optim=OPTIM
)
META = MetaConfig(
    audio=SPEC,
    **SIZES,
    mel_loss=MEL_LOSS,
    adapt=AdaptConfig(
        steps=1, learning_rate=0.05, perturb=PerturbConfig(formants=0.0, pitch=0.0, eq_db=0.0)
    ),
    optim=OPTIM,
)


@pytest.mark.parametrize("rate", [1.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_a_converter_is_trained_on_what_is_heard(batch, rate):
    config = dataclasses.replace(CONVERSION, encoder_rate=rate)
    task, state = start(config)
    # A trained encoder is held as it was, beside the one that learns.
    assert set(state.frozen["helpers"]) == ({"encoder", "vocoder"} if rate else {"vocoder"})
    assert set(task.models(state)) == {"encoder", "speaker", "converter", "adapter"}
    after, metrics = jax.jit(task.step)(state, batch)
    np.testing.assert_array_equal(flat(after.frozen), flat(state.frozen))
    assert float(metrics["loss"]) == pytest.approx(
        float(metrics["mel_l1"] + 0.5 * metrics["perceptual_loss"] + 0.5 * metrics["stft_loss"]),
        rel=1e-5,
    )
    parts, more = jax.jit(dataclasses.replace(config, microbatches=2).task().step)(state, batch)
    a, b = (flat(gradient(x.model)) for x in (after, parts))
    np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(a).max())
    assert float(more["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-4)


def test_without_weights_a_converter_is_trained_as_before(batch):
    plain = dataclasses.replace(CONVERSION, mel_loss=MelLossConfig())
    task, state = start(plain)
    assert "helpers" not in state.frozen
    _, metrics = jax.jit(task.step)(state, batch)
    assert float(metrics["loss"]) == float(metrics["mel_l1"])
    assert task.helpers == {}


@pytest.mark.slow
def test_meta_training_asks_the_query_set_alone(batch):
    pairs = jax.tree.map(lambda x: np.asarray(x).reshape(2, 2, *x.shape[1:]), batch)
    episode = Episode(
        support=jax.tree.map(lambda x: x[:, :1], pairs),
        query=jax.tree.map(lambda x: x[:, 1:], pairs),
    )
    task, state = start(META)
    assert set(state.frozen["helpers"]) == {"vocoder"}  # the encoder is frozen anyway
    after, metrics = jax.jit(task.step)(state, episode)
    np.testing.assert_array_equal(flat(after.frozen), flat(state.frozen))

    def asked(when):
        parts = (metrics[f"query_{name}_{when}"] for name in ("l1", "perceptual_loss", "stft_loss"))
        return float(sum(weight * part for weight, part in zip((1, 0.5, 0.5), parts)))

    assert float(metrics["loss"]) == pytest.approx(
        2 / 3 * asked("after") + 1 / 3 * asked("before"), rel=1e-5
    )
    # The inner loop is that of enrolment, and so the L1 after it.
    plain = dataclasses.replace(META, mel_loss=MelLossConfig()).task()
    state = state.replace(frozen={k: v for k, v in state.frozen.items() if k != "helpers"})
    _, ordinary = jax.jit(plain.step)(state, episode)
    for name in ("query_l1_before", "query_l1_after"):
        assert float(ordinary[name]) == pytest.approx(float(metrics[name]), rel=1e-5)


@pytest.mark.parametrize("kind", [ConversionConfig, MetaConfig])
def test_an_encoder_of_waveforms_has_no_ear_for_mels(kind):
    config = kind(encoder=Wav2Vec2Config.tiny(), mel_loss=MelLossConfig(perceptual_weight=1.0))
    with pytest.raises(UserError, match="is for an encoder of mels: this one takes waveforms"):
        config.task()
