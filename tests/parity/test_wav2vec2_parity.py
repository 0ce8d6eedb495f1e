"""wav2vec 2.0 against the implementation of Hugging Face, with small random weights."""

from __future__ import annotations

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.losses.contrastive import ContrastiveConfig, pretraining_loss
from jaxclone.models.wav2vec2 import (
    Wav2Vec2Config,
    Wav2Vec2Encoder,
    Wav2Vec2Pretraining,
    Wav2Vec2PretrainingConfig,
)
from jaxclone.nn.masking import MaskingConfig, mask_spans, sample_negatives
from jaxclone.nn.quantize import QuantizerConfig
from jaxclone.tree import flatten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = Wav2Vec2Config(
    conv_width=8,
    feature_grad_scale=1.0,
    width=16,
    layers=3,
    heads=2,
    mlp_width=24,
    positional_kernel=16,
    positional_groups=4,
    layer_drop=0.0,
)
CONFIGS = {
    "base": TINY,
    "large": dataclasses.replace(TINY, conv_bias=True, conv_norm="layer", norm_first=True),
}
SAMPLES, LENGTH = 9_000, [9_000, 6_500, 3_777]
TAU = 1.7

# Each pattern of their names, what it is called here, and how the array is turned. `#` is a number
# that stays one here; `*` numbers the layers that are stacked along a first axis here.
CONV, DENSE, SAME = (2, 1, 0), (1, 0), None
NAMES = [
    ("wav2vec2.feature_extractor.conv_layers.#.conv.weight", "stem/conv_#/kernel", CONV),
    ("wav2vec2.feature_extractor.conv_layers.#.conv.bias", "stem/conv_#/bias", SAME),
    ("wav2vec2.feature_extractor.conv_layers.#.layer_norm.weight", "stem/norm_#/scale", SAME),
    ("wav2vec2.feature_extractor.conv_layers.#.layer_norm.bias", "stem/norm_#/bias", SAME),
    ("wav2vec2.feature_projection.layer_norm.weight", "stem_norm/scale", SAME),
    ("wav2vec2.feature_projection.layer_norm.bias", "stem_norm/bias", SAME),
    ("wav2vec2.feature_projection.projection.weight", "project/kernel", DENSE),
    ("wav2vec2.feature_projection.projection.bias", "project/bias", SAME),
    ("wav2vec2.masked_spec_embed", "mask_embedding", SAME),
    (
        "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "positional/scale",
        CONV,
    ),
    (
        "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "positional/direction",
        CONV,
    ),
    ("wav2vec2.encoder.pos_conv_embed.conv.bias", "positional/bias", SAME),
    ("wav2vec2.encoder.layer_norm.weight", "norm/scale", SAME),
    ("wav2vec2.encoder.layer_norm.bias", "norm/bias", SAME),
    *(
        (
            f"wav2vec2.encoder.layers.*.attention.{theirs}_proj.{kind}",
            f"layers/attention/{ours}/{mine}",
            turn,
        )
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out"))
        for kind, mine, turn in (("weight", "kernel", DENSE), ("bias", "bias", SAME))
    ),
    *(
        (f"wav2vec2.encoder.layers.*.{theirs}.{kind}", f"layers/{ours}/{mine}", SAME)
        for theirs, ours in (("layer_norm", "norm_attention"), ("final_layer_norm", "norm_mlp"))
        for kind, mine in (("weight", "scale"), ("bias", "bias"))
    ),
    *(
        (
            f"wav2vec2.encoder.layers.*.feed_forward.{theirs}_dense.{kind}",
            f"layers/mlp/{ours}/{mine}",
            turn,
        )
        for theirs, ours in (("intermediate", "up"), ("output", "down"))
        for kind, mine, turn in (("weight", "kernel", DENSE), ("bias", "bias", SAME))
    ),
]
HEAD_NAMES = [
    ("quantizer.weight_proj.weight", "quantizer/logits/kernel", DENSE),
    ("quantizer.weight_proj.bias", "quantizer/logits/bias", SAME),
    ("quantizer.codevectors", "quantizer/codebook", SAME),
    ("project_hid.weight", "project_predicted/kernel", DENSE),
    ("project_hid.bias", "project_predicted/bias", SAME),
    ("project_q.weight", "project_target/kernel", DENSE),
    ("project_q.bias", "project_target/bias", SAME),
]


def theirs(config):
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForPreTraining(
        transformers.Wav2Vec2Config(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            conv_dim=(config.conv_width,) * 7,
            conv_bias=config.conv_bias,
            feat_extract_norm=config.conv_norm,
            do_stable_layer_norm=config.norm_first,
            num_conv_pos_embeddings=config.positional_kernel,
            num_conv_pos_embedding_groups=config.positional_groups,
            num_codevectors_per_group=4,
            codevector_dim=6,
            proj_codevector_dim=10,
            hidden_dropout=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
            feat_proj_dropout=0.0,
            feat_quantizer_dropout=0.0,
            layerdrop=0.0,
            attn_implementation="eager",
        )
    )
    with torch.no_grad():  # biases and scales start at 0 and 1, which would hide a mix-up
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def ours(state):
    """Their arrays by name, renamed and turned into the tree of `Wav2Vec2Pretraining`."""
    state = {name: array.detach().numpy() for name, array in state.items()}
    flat = {}
    for name, path, turn in [(n, f"encoder/{p}", t) for n, p, t in NAMES] + HEAD_NAMES:
        pattern = re.compile(re.escape(name).replace(r"\*", r"(\d+)").replace(r"\#", r"(\d+)"))
        found = [match for key in list(state) if (match := pattern.fullmatch(key))]
        found.sort(key=lambda match: [int(number) for number in match.groups()])
        arrays = [state.pop(match[0]) for match in found]
        arrays = [array if turn is None else array.transpose(turn) for array in arrays]
        if "*" in name:
            flat[path] = np.stack(arrays)
        else:
            flat |= {path.replace("#", "".join(m.groups())): a for m, a in zip(found, arrays)}
    assert not state, f"no name for {list(state)}"
    codebook = flat["quantizer/codebook"]
    flat["quantizer/codebook"] = codebook.reshape(2, -1, codebook.shape[-1])
    tree = {}
    for path, array in flat.items():
        *folders, leaf = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = jnp.asarray(array)
    return tree


def batch():
    waveform = np.random.default_rng(0).normal(size=(3, SAMPLES)).astype(np.float32)
    length = np.array(LENGTH)
    return waveform * (np.arange(SAMPLES) < length[:, None]), length


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    config = Wav2Vec2PretrainingConfig(CONFIGS[request.param], QuantizerConfig(2, 4, 6), 10, 0.0)
    model = theirs(config.encoder)
    return config, model, ours(dict(model.named_parameters()))


def test_same_parameters(pair):
    config, _, params = pair
    waveform, length = batch()
    keys = rng.per_example(rng.root(0), jnp.arange(3))
    frames = config.encoder.frame_length(SAMPLES)
    masked = mask_spans(keys, config.encoder.frame_length(length), frames, MaskingConfig())
    abstract = jax.eval_shape(
        Wav2Vec2Pretraining(config).init, rng.root(0), waveform, length, masked
    )
    shapes = {name: leaf.shape for name, leaf in flatten(nn.unbox(abstract["params"])).items()}
    assert {name: leaf.shape for name, leaf in flatten(params).items()} == shapes


def test_every_hidden_state(pair):
    config, model, params = pair
    waveform, length = batch()
    output = jax.jit(Wav2Vec2Encoder(config.encoder).apply)(
        {"params": params["encoder"]}, waveform, length
    )
    mask = torch.arange(SAMPLES) < torch.tensor(length)[:, None]
    with torch.no_grad():
        expected = model.eval().wav2vec2(
            torch.tensor(waveform), attention_mask=mask, output_hidden_states=True
        )
    frames = config.encoder.frame_length(length)
    np.testing.assert_array_equal(
        frames, model._get_feat_extract_output_lengths(torch.tensor(length))
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
    config, model, params = pair
    waveform, length = batch()
    keys = rng.per_example(rng.root(1), jnp.arange(3))
    frames = config.encoder.frame_length(SAMPLES)
    masked = mask_spans(keys, config.encoder.frame_length(length), frames, MaskingConfig())
    negatives = sample_negatives(keys, masked.valid, 20)

    def loss_fn(params):
        output = Wav2Vec2Pretraining(config).apply(
            {"params": params}, waveform, length, masked, temperature=TAU, noise_keys=keys
        )
        weights = ContrastiveConfig(feature_penalty=0.0)
        return pretraining_loss(output, negatives, masked.valid, weights)

    (loss, metrics), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    weight = metrics["weight"]

    # The same noise, masks and negatives, laid out over all frames as they want them.
    index, valid = np.asarray(masked.index), np.asarray(masked.valid)
    noise = np.zeros((3, frames, 2, 4), np.float32)
    places = np.zeros((3, frames, 20), np.int64)
    drawn = jax.vmap(lambda key: jax.random.gumbel(key, (valid.shape[1], 2, 4)))(keys)
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
    expected = model(
        torch.tensor(waveform),
        attention_mask=torch.arange(SAMPLES) < torch.tensor(length)[:, None],
        mask_time_indices=torch.tensor(np.asarray(masked.mask)),
        sampled_negative_indices=torch.tensor(places),
    )
    expected.loss.backward()

    np.testing.assert_allclose(weight * loss, expected.loss.item(), rtol=1e-5)
    np.testing.assert_allclose(
        weight * np.log(2) * metrics["bits"], expected.contrastive_loss.item(), rtol=1e-5
    )
    np.testing.assert_allclose(
        metrics["prob_perplexity"], expected.codevector_perplexity.item(), rtol=1e-5
    )
    want = flatten(ours({name: p.grad / float(weight) for name, p in model.named_parameters()}))
    got = flatten(grads)
    assert want.keys() == got.keys()
    for name, grad in want.items():
        # A key's bias moves all logits of a query alike, so that its gradient is rounding alone.
        largest = max(np.abs(grad).max(), 1e-2 if name.endswith("key/bias") else 0)
        np.testing.assert_allclose(got[name], grad, atol=1e-4 * largest, err_msg=name)
