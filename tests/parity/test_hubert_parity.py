"""The head and the loss of HuBERT against the same written in torch, from the encoder's output."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.losses.masked_units import MaskedUnitsConfig, masked_unit_loss
from jaxclone.models.hubert import Hubert, HubertConfig
from jaxclone.models.wav2vec2 import Wav2Vec2Encoder

torch = pytest.importorskip("torch")

CONFIG = HubertConfig.tiny(units=11)
CONFIG = dataclasses.replace(
    CONFIG, encoder=dataclasses.replace(CONFIG.encoder, feature_grad_scale=1.0)
)
SAMPLES, LENGTH = 4_800, np.array([4_800, 3_300])


def reference(output, stem, length, head, units, masked, config):
    """The sums of the published criterion, with each frame's own logits: positive, then negatives.

    There a frame is told from all units by their cosines; a negative that is the positive is left
    out. The feature penalty is a mean over true frames, weighed by the frames of the loss.
    """
    x = output @ head["kernel"] + head["bias"]
    frames = torch.arange(x.shape[1]) < length[:, None]

    def sums(where):
        at, target = x[where], head["embedding"][units[where]]
        candidates = torch.cat([target[None], head["embedding"][:, None].expand(-1, len(at), -1)])
        logits = torch.cosine_similarity(at[None], candidates, dim=-1) / 0.1
        same = (candidates[1:] == target[None]).all(-1)
        logits = torch.cat([logits[:1], logits[1:].masked_fill(same, -torch.inf)]).T
        zero = torch.zeros(len(at), dtype=torch.long)
        correct = (logits.argmax(-1) == 0).double().mean()
        return torch.nn.functional.cross_entropy(logits, zero, reduction="sum"), len(at), correct

    known = frames & (units >= 0)
    hidden, n_hidden, accuracy = sums(known & masked)
    seen, n_seen, accuracy_unmasked = sums(known & ~masked)
    n = n_hidden + (n_seen if config.unmasked else 0)
    counted = known & (masked | torch.tensor(config.unmasked > 0))
    energy = torch.stack([row[:k].square().mean() for row, k in zip(stem, length)])
    loss = config.masked * hidden + config.unmasked * seen
    loss = loss + config.feature_penalty * (energy * counted.sum(1)).sum()
    return loss / n, hidden / n_hidden / np.log(2), accuracy, accuracy_unmasked


@pytest.fixture(scope="module")
def batch(speech):
    waveform = np.stack([speech[4000 : 4000 + SAMPLES], speech[9000 : 9000 + SAMPLES]])
    return jnp.asarray(waveform * (np.arange(SAMPLES) < LENGTH[:, None]))


@pytest.fixture(scope="module")
def params(batch):
    init = jax.jit(Hubert(CONFIG).init)
    return nn.unbox(init(rng.root(0), batch, LENGTH))["params"]


@pytest.mark.parametrize(
    "config", [MaskedUnitsConfig(), MaskedUnitsConfig(masked=1.0, unmasked=0.5)], ids=str
)
def test_loss_and_gradients_of_the_head(batch, params, config):
    random = np.random.default_rng(0)
    masked = random.random((2, 15)) < 0.5
    units = random.integers(11, size=(2, 15), dtype=np.int32)
    units[0, 3], masked[0, 3] = -1, True
    head = {name: params["project"][name] for name in ("kernel", "bias")}
    head["embedding"] = params["embedding"]

    @jax.jit
    @jax.value_and_grad
    def loss_fn(head):
        whole = params | {"embedding": head["embedding"]}
        whole["project"] = {"kernel": head["kernel"], "bias": head["bias"]}
        output = Hubert(CONFIG).apply({"params": whole}, batch, LENGTH, masked)
        return masked_unit_loss(output, units, masked, config)[0]

    loss, grads = loss_fn(head)
    _, metrics = masked_unit_loss(
        Hubert(CONFIG).apply({"params": params}, batch, LENGTH, masked), units, masked, config
    )
    encoder = Wav2Vec2Encoder(CONFIG.encoder)
    encoded = encoder.apply({"params": params["encoder"]}, batch, LENGTH, mask_frames=masked)

    def tensor(x):
        return torch.tensor(np.asarray(x), dtype=torch.float64)

    theirs = {name: tensor(leaf).requires_grad_() for name, leaf in head.items()}
    want, bits, accuracy, accuracy_unmasked = reference(
        tensor(encoded.output),
        tensor(encoded.stem),
        torch.tensor(np.asarray(encoded.frame_length)),
        theirs,
        torch.tensor(units, dtype=torch.long),
        torch.tensor(masked),
        config,
    )
    want.backward()
    want, bits = want.detach(), bits.detach()
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["bits"], bits, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy_unmasked"], accuracy_unmasked, rtol=1e-5)
    for name, leaf in theirs.items():
        np.testing.assert_allclose(grads[name], leaf.grad, atol=1e-5, err_msg=name)


def test_padding_changes_nothing(batch, params):
    output = Hubert(CONFIG).apply({"params": params}, batch, LENGTH)
    alone = Hubert(CONFIG).apply({"params": params}, batch[1:, : LENGTH[1]], LENGTH[1:])
    assert (output.logits.shape, output.frame_length.tolist()) == ((2, 15, 11), [15, 10])
    np.testing.assert_allclose(output.logits[1, :10], alone.logits[0], atol=1e-4)
    np.testing.assert_allclose(output.energy[1], alone.energy[0], rtol=1e-5)
