"""Speaker encoder and converter: padding, adapters, shapes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel
from jaxclone.models.converter import (
    Converter,
    ConverterConfig,
    harmonic_ripple,
    instance_norm,
)
from jaxclone.models.speaker import SpeakerEncoder, SpeakerEncoderConfig
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.types import UserError

CONFIG, AUDIO = ConverterConfig.tiny(), AudioSpec(n_mels=8)
ENCODER = dataclasses.replace(Wav2Vec2Config.mini(), conv_strides=(5, 2, 2, 2, 2, 2, 1))


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    content = jax.random.normal(keys[0], (2, 30, 6))
    speaker = jax.random.normal(keys[1], (2, 8))
    f0 = jnp.where(jax.random.bernoulli(keys[2], 0.7, (2, 30)), 180.0, 0.0)
    return content, speaker, f0, jnp.array([30, 9])


@pytest.fixture(scope="module")
def variables(inputs):
    keys = {"params": jax.random.key(1), "adapter": jax.random.key(2)}
    return nn.unbox(Converter(CONFIG, AUDIO).init(keys, *inputs))


def test_padding_does_not_change_the_converter(inputs, variables):
    content, speaker, f0, length = inputs
    padded = Converter(CONFIG, AUDIO).apply(variables, content, speaker, f0, length)
    alone = Converter(CONFIG, AUDIO).apply(
        variables, content[1:, :9], speaker[1:], f0[1:, :9], length[1:]
    )
    np.testing.assert_allclose(padded[1, :9], alone[0], atol=1e-5)
    assert not np.any(padded[1, 9:])


def test_a_new_adapter_is_the_identity(inputs, variables):
    with_adapter = Converter(CONFIG, AUDIO).apply(variables, *inputs)
    without = Converter(CONFIG, AUDIO).apply({"params": variables["params"]}, *inputs)
    np.testing.assert_array_equal(with_adapter, without)
    moved = jax.tree.map(lambda x: x + 0.1, variables["adapter"])
    adapted = Converter(CONFIG, AUDIO).apply({**variables, "adapter": moved}, *inputs)
    assert np.abs(adapted - without).max() > 1e-2


def test_the_source_s_mean_and_variance_do_not_pass(inputs, variables):
    content, speaker, f0, length = inputs
    plain = Converter(CONFIG, AUDIO).apply(variables, content, speaker, f0, length)
    shifted = Converter(CONFIG, AUDIO).apply(variables, content * 3 + 5, speaker, f0, length)
    np.testing.assert_allclose(plain, shifted, atol=2e-3)
    other = Converter(CONFIG, AUDIO).apply(variables, content, speaker[::-1], f0, length)
    assert np.abs(plain - other).max() > 1e-2


def test_instance_norm_is_over_true_frames_only():
    x = jax.random.normal(jax.random.key(3), (1, 20, 3)) * 4 + 2
    mask = (jnp.arange(20) < 12)[None, :, None]
    y = instance_norm(x, mask)[0, :12]
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-3)


@pytest.mark.parametrize("f0", [100.0, 160.0, 250.0])
def test_the_ripple_is_that_of_the_harmonics(f0):
    spec = AudioSpec()
    time = np.arange(16_000) / 16_000
    tone = 0.03 * sum(np.cos(2 * np.pi * f0 * k * time) for k in range(1, int(8000 / f0)))
    mel = np.asarray(log_mel(tone.astype(np.float32), spec))[25]
    ripple = np.asarray(harmonic_ripple(jnp.full((1, 1), f0), spec))[0, 0]
    assert np.corrcoef(ripple[:20], mel[:20])[0, 1] > 0.8
    assert np.abs(ripple[75:]).max() < 0.1  # there a band holds several harmonics
    assert not np.any(harmonic_ripple(jnp.zeros((1, 1)), spec))


def test_padding_does_not_change_the_speaker_encoder():
    model = SpeakerEncoder(SpeakerEncoderConfig.tiny())
    mel = jax.random.normal(jax.random.key(0), (2, 50, 80)) - 4
    length = jnp.array([50, 13])
    params = nn.unbox(model.init(jax.random.key(1), mel, length))
    both = model.apply(params, mel, length)
    alone = model.apply(params, mel[1:, :13], length[1:])
    np.testing.assert_allclose(both[1], alone[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(both, axis=-1), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": AudioSpec(fmax=4000.0)}, "AudioSpec of the encoder's run does not match"),
        ({"audio": AudioSpec(log="log10")}, "natural-log mels"),
        ({"encoder": dataclasses.replace(ENCODER, mel=None)}, "encoder makes a frame every"),
        ({"converter": dataclasses.replace(CONFIG, content_layer=4)}, "3 layers has 0 to 3"),
        ({"converter": dataclasses.replace(CONFIG, content_layer=-5)}, "content_layer is -5"),
    ],
)
def test_networks_that_do_not_fit_together(change, message):
    parts = {
        "audio": AudioSpec(),
        "encoder": ENCODER,
        "speaker": SpeakerEncoderConfig.tiny(),
        "converter": CONFIG,
    }
    VoiceConversion(**parts)
    with pytest.raises(UserError, match=message):
        VoiceConversion(**{**parts, **change})
