"""wav2vec 2.0 and its pretraining against the implementation of Hugging Face, random weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import random_model, waveforms

from jaxclone import rng
from jaxclone.interop import huggingface
from jaxclone.interop.names import to_ours
from jaxclone.losses.contrastive import ContrastiveConfig, pretraining_loss
from jaxclone.models.wav2vec2 import Wav2Vec2Encoder, Wav2Vec2Pretraining
from jaxclone.nn.masking import MaskingConfig, mask_spans, sample_negatives
from jaxclone.tree import flatten

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SAMPLES = 9_000
WAVEFORM, LENGTH = waveforms(SAMPLES, 6_500, 3_777)
TAU = 1.7


@pytest.fixture(
    scope="module",
    params=[
        ("base", True),
        ("large", True),
        pytest.param(("base", False), marks=pytest.mark.slow),
        pytest.param(("large", False), marks=pytest.mark.slow),
    ],
    ids=["tiny-base", "tiny-large", "base", "large"],
)
def pair(request, tmp_path_factory):
    """The models of a bundle, and the one of transformers that it was imported from."""
    size, tiny = request.param
    more = {"feat_quantizer_dropout": 0.0}
    if not tiny and size == "large":
        more |= {"codevector_dim": 768, "proj_codevector_dim": 768}
    model = random_model("pretraining", size, tiny, **more)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    bundle = huggingface.read(folder).bundle
    assert (bundle.configs["encoder"].layers == 3) == tiny
    return model, bundle.configs["pretraining"], bundle.models


def padding_mask():
    return torch.arange(SAMPLES) < torch.tensor(LENGTH)[:, None]


def test_every_hidden_state(pair):
    model, config, models = pair
    output = jax.jit(Wav2Vec2Encoder(config.encoder).apply)(
        {"params": models["encoder"]}, WAVEFORM, LENGTH
    )
    with torch.no_grad():
        expected = model.eval().wav2vec2(
            torch.tensor(WAVEFORM), attention_mask=padding_mask(), output_hidden_states=True
        )
    frames = config.encoder.frame_length(LENGTH)
    np.testing.assert_array_equal(
        frames, model._get_feat_extract_output_lengths(torch.tensor(LENGTH))
    )
    np.testing.assert_array_equal(frames, output.frame_length)
    assert len(expected.hidden_states) == len(output.layers) == config.encoder.layers + 1
    for example, n in enumerate(frames):
        for layer, want in zip(output.layers, expected.hidden_states):
            np.testing.assert_allclose(layer[example, :n], want[example, :n], atol=1e-4)
        for got, want in (
            (output.output, expected.last_hidden_state),
            (output.stem_normalized, expected.extract_features),
        ):
            np.testing.assert_allclose(got[example, :n], want[example, :n], atol=1e-4)


def test_loss_and_every_gradient(pair, monkeypatch):
    model, config, models = pair
    tiny = config.encoder.layers == 3
    groups, codes = config.quantizer.groups, config.quantizer.codes
    keys = rng.per_example(rng.root(1), jnp.arange(3))
    frames = config.encoder.frame_length(SAMPLES)
    masked = mask_spans(keys, config.encoder.frame_length(LENGTH), frames, MaskingConfig())
    negatives = sample_negatives(keys, masked.valid, 20)

    def loss_fn(models):
        output = Wav2Vec2Pretraining(config).apply(
            {"params": {"encoder": models["encoder"], **models["pretraining"]}},
            WAVEFORM,
            LENGTH,
            masked,
            temperature=TAU,
            noise_keys=keys,
        )
        weights = ContrastiveConfig(feature_penalty=0.0)
        return pretraining_loss(output, negatives, masked, weights)

    if tiny:
        (loss, metrics), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(models)
    else:
        loss, metrics = jax.jit(loss_fn)(models)
    weight = metrics["weight"]

    # The same noise, masks and negatives, laid out over all frames as they want them.
    index, valid = np.asarray(masked.index), np.asarray(masked.valid)
    noise = np.zeros((3, frames, groups, codes), np.float32)
    places = np.zeros((3, frames, 20), np.int64)
    drawn = jax.vmap(lambda key: jax.random.gumbel(key, (valid.shape[1], groups, codes)))(keys)
    for i in range(3):
        noise[i, index[i][valid[i]]] = drawn[i][valid[i]]
        places[i, index[i][valid[i]]] = index[i][np.asarray(negatives[i])[valid[i]]] + i * frames

    def gumbel_softmax(logits, tau, hard):
        noisy = logits + torch.tensor(noise).reshape(logits.shape)
        soft = (noisy / tau).softmax(-1)
        choice = torch.nn.functional.one_hot(noisy.argmax(-1), logits.shape[-1])
        return choice + (soft - soft.detach())

    # They find negatives equal to the positive by comparing projected vectors, which differ from
    # row to row by the rounding of a matrix product; a sum of products is the same in every row.
    def project(x):
        return (x[..., None, :] * model.project_q.weight).sum(-1) + model.project_q.bias

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", gumbel_softmax)
    monkeypatch.setattr(model.project_q, "forward", project)
    model.train().set_gumbel_temperature(TAU)
    model.zero_grad()
    with torch.set_grad_enabled(tiny):
        expected = model(
            torch.tensor(WAVEFORM),
            attention_mask=padding_mask(),
            mask_time_indices=torch.tensor(np.asarray(masked.mask)),
            sampled_negative_indices=torch.tensor(places),
        )
    in_use = metrics["prob_perplexity"]
    for got, want in (
        (weight * loss, expected.loss),
        (weight * np.log(2) * metrics["bits"], expected.contrastive_loss),
        (in_use, expected.codevector_perplexity),
        (weight * (1 - in_use / (groups * codes)), expected.diversity_loss),
    ):
        np.testing.assert_allclose(got, want.item(), rtol=1e-5 if tiny else 1e-4)
    if not tiny:
        return

    expected.loss.backward()
    theirs = {
        name.removeprefix("wav2vec2."): p.grad.numpy() / float(weight)
        for name, p in model.named_parameters()
    }
    want = flatten(to_ours(theirs, models, huggingface.TABLE, "gradients"))
    got = flatten(grads)
    assert want.keys() == got.keys()
    for name, grad in want.items():
        # A key's bias moves all logits of a query alike, so that its gradient is rounding alone.
        largest = max(np.abs(grad).max(), 1e-2 if name.endswith("key/bias") else 0)
        np.testing.assert_allclose(got[name], grad, atol=1e-4 * largest, err_msg=name)
