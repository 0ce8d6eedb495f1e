"""Imported HuBERT and WavLM against the models of transformers that they came from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import random_model, waveforms

from jaxclone.interop import huggingface
from jaxclone.interop.names import to_ours
from jaxclone.models.wav2vec2 import Wav2Vec2Encoder
from jaxclone.tree import flatten
from jaxclone.types import length_mask

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

# Of how transformers calls PyTorch in WavLM.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
SIZES = ["base", "large"]


def read(model, folder):
    """The encoder of a model that was saved."""
    model.save_pretrained(folder)
    bundle = huggingface.read(folder).bundle
    return bundle.configs["encoder"], bundle.models["encoder"]


def run_theirs(model, waveform, length):
    mask = torch.tensor(np.arange(waveform.shape[1]) < length[:, None])
    return model(torch.tensor(waveform), attention_mask=mask, output_hidden_states=True)


def assert_same_layers(config, got, want, length):
    assert len(want.hidden_states) == len(got.layers) == config.layers + 1
    pairs = [(got.output, want.last_hidden_state), *zip(got.layers, want.hidden_states)]
    pairs = [(np.asarray(here), there.detach().numpy()) for here, there in pairs]
    for example, frames in enumerate(np.asarray(config.frame_length(length))):
        assert frames > 0
        for here, there in pairs:
            np.testing.assert_allclose(here[example, :frames], there[example, :frames], atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_every_layer_and_every_gradient(family, size, tmp_path):
    model = random_model(family, size)
    config, params = read(model, tmp_path)
    waveform, length = waveforms(9_000, 6_500, 3_777)
    frames = config.frame_length(9_000)
    weight = np.random.default_rng(1).normal(size=(3, frames, config.width)).astype(np.float32)
    weight *= np.asarray(length_mask(config.frame_length(length), frames))[..., None]

    def loss(params):
        output = Wav2Vec2Encoder(config).apply({"params": params}, waveform, length)
        return (output.output * weight).sum(), output

    (_, output), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected = run_theirs(model, waveform, length)
    assert_same_layers(config, output, expected, length)

    (expected.last_hidden_state * torch.tensor(weight)).sum().backward()
    theirs = {
        # The mask embedding has none: nothing is masked here.
        name: np.zeros_like(p.detach().numpy()) if p.grad is None else p.grad.numpy()
        for name, p in model.named_parameters()
    }
    want = to_ours(theirs, {"encoder": params}, huggingface.TABLE, "gradients")["encoder"]
    got = flatten(grads)
    assert np.any(got["layers/attention/query/kernel"])
    for name, grad in flatten(want).items():
        # A key's bias moves all logits of a query alike, so that its gradient is rounding alone.
        largest = max(np.abs(grad).max(), 1e-2 if name.endswith("key/bias") else 1e-6)
        np.testing.assert_allclose(got[name], grad, atol=1e-4 * largest, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_every_layer_in_published_shapes(family, size, tmp_path):
    model = random_model(family, size, tiny=False)
    config, params = read(model, tmp_path)
    assert (config.width, config.layers) == ((768, 12) if size == "base" else (1024, 24))
    waveform, length = waveforms(20_000, 13_500)
    output = jax.jit(Wav2Vec2Encoder(config).apply)({"params": params}, waveform, length)
    with torch.no_grad():
        expected = run_theirs(model, waveform, length)
    assert_same_layers(config, output, expected, length)


@pytest.mark.parametrize(("buckets", "distance"), [(320, 800), (8, 16), (32, 128)])
def test_buckets_of_distances(buckets, distance):
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    from jaxclone.nn.relative import RelativePositionsConfig

    theirs = WavLMAttention(16, 2, num_buckets=buckets, max_distance=distance)
    offsets = np.arange(-4000, 4001)
    np.testing.assert_array_equal(
        RelativePositionsConfig(buckets, distance).bucket(offsets),
        theirs._relative_positions_bucket(torch.tensor(offsets)),
    )


def test_normalised_input(tmp_path):
    """What the feature extractor does before the model is done inside of ours."""
    import transformers

    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    extractor.save_pretrained(tmp_path)
    model = random_model("wav2vec2", "large")
    config, params = read(model, tmp_path)
    assert config.normalize_input
    loud = [0.3 + 5 * np.random.default_rng(0).normal(size=n) for n in (9_000, 5_000)]
    inputs = extractor(loud, sampling_rate=16_000, padding=True, return_tensors="pt")
    with torch.no_grad():
        want = model(**inputs).last_hidden_state
    waveform = jnp.stack([jnp.pad(jnp.float32(x), (0, 9_000 - len(x))) for x in loud])
    got = jax.jit(Wav2Vec2Encoder(config).apply)(
        {"params": params}, waveform, jnp.array([9_000, 5_000])
    ).output
    for example, n in enumerate(map(config.frame_length, (9_000, 5_000))):
        np.testing.assert_allclose(got[example, :n], want[example, :n], atol=1e-4)
