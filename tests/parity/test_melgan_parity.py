"""MelGAN against PyTorch's own operations: generator, discriminators, losses, gradients."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from jaxclone.models.discriminators import (
    ConvSpec,
    MelGANDiscriminatorConfig,
    make_discriminators,
)
from jaxclone.models.melgan import MelGAN, MelGANConfig
from jaxclone.tree import flatten

torch = pytest.importorskip("torch")

F = torch.nn.functional
CONFIG = MelGANConfig(n_mels=6, rates=(4, 2), channels=16, layers=3)
JUDGES = MelGANDiscriminatorConfig(
    scales=3,
    layers=(ConvSpec(8, 15), ConvSpec(16, 41, 4, 2), ConvSpec(16, 41, 4, 4), ConvSpec(12, 5)),
)


def spread(params):
    key = jax.random.key(1)  # no bias is 0, and no scale the norm of its direction
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), nn.unbox(params))


@pytest.fixture(scope="module")
def generator():
    """Parameters, and mels of more frames than the widest reflection needs."""
    mel = np.random.default_rng(2).normal(size=(2, 23, CONFIG.n_mels)).astype(np.float32)
    return spread(jax.jit(MelGAN(CONFIG).init)(jax.random.key(0), mel)["params"]), mel


@pytest.fixture(scope="module")
def judges():
    real, fake = np.random.default_rng(3).normal(size=(2, 2, 602)).astype(np.float32)
    init = jax.jit(make_discriminators(JUDGES).init)
    return spread(init(jax.random.key(0), real)["params"]), real, fake


def as_torch(tree):
    return {k: torch.tensor(np.asarray(v), requires_grad=True) for k, v in flatten(tree).items()}


def weight(params, name, transposed=False):
    v, g = (params[f"{name}/{part}"].permute(2, 1, 0) for part in ("direction", "scale"))
    if transposed:
        v, g = v.transpose(0, 1), g.transpose(0, 1)
    return torch._weight_norm(v, g, 0)


def conv(params, name, x, **options):
    return F.conv1d(x, weight(params, name), params[f"{name}/bias"], **options)


def torch_generator(params, mel):
    """The published generator in PyTorch's operations (Kumar et al. 2019 §2.1, appendix A)."""
    x = conv(params, "first", F.pad(mel.transpose(1, 2), (3, 3), mode="reflect"))
    for i, rate in enumerate(CONFIG.rates):
        x = F.conv_transpose1d(
            F.leaky_relu(x, 0.2),
            weight(params, f"upsample_{i}", transposed=True),
            params[f"upsample_{i}/bias"],
            stride=rate,
            padding=rate // 2,
        )
        for j in range(CONFIG.layers):
            name, d = f"block_{i}_{j}", 3**j
            y = F.pad(F.leaky_relu(x, 0.2), (d, d), mode="reflect")
            y = F.leaky_relu(conv(params, f"{name}/dilated", y, dilation=d), 0.2)
            x = conv(params, f"{name}/shortcut", x) + conv(params, f"{name}/plain", y)
    x = F.pad(F.leaky_relu(x, 0.2), (3, 3), mode="reflect")
    return torch.tanh(conv(params, "last", x))[:, 0]


def torch_discriminators(params, waveform):
    """Outputs of all layers of each discriminator, the logits last: [b, c, t]."""
    x, outputs = waveform[:, None], []
    for scale in range(JUDGES.scales):
        y, maps = F.pad(x, (7, 7), mode="reflect"), []
        for i, spec in enumerate(JUDGES.layers):
            side = 0 if i == 0 else (spec.kernel - 1) // 2
            name = f"scale_{scale}/conv_{i}"
            y = conv(params, name, y, stride=spec.stride, groups=spec.groups, padding=side)
            y = F.leaky_relu(y, 0.2)
            maps.append(y)
        maps.append(conv(params, f"scale_{scale}/last", y, padding=1))
        outputs.append(maps)
        x = F.avg_pool1d(x, 4, 2, padding=1, count_include_pad=False)
    return outputs


def torch_losses(params, real, fake):
    """Of the discriminators and of the generator, as the published training writes them."""
    real, fake = torch_discriminators(params, real), torch_discriminators(params, fake)
    judged = sum(F.relu(1 - r[-1]).mean() + F.relu(1 + f[-1]).mean() for r, f in zip(real, fake))
    matching = sum(F.l1_loss(f, r) for rs, fs in zip(real, fake) for r, f in zip(rs[:-1], fs[:-1]))
    return judged, sum(-f[-1].mean() for f in fake) + 10 * matching


def assert_gradients(gradients, theirs):
    for name, gradient in flatten(gradients).items():
        expected = theirs[name].grad.numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradient / scale, expected / scale, atol=1e-4, err_msg=name)


def test_generator_and_its_gradients(generator):
    params, mel = generator
    theirs = as_torch(params)
    wanted = torch_generator(theirs, torch.tensor(mel))
    direction = np.random.default_rng(4).normal(size=wanted.shape).astype(np.float32)

    def spoken(params):
        ours = MelGAN(CONFIG).apply({"params": params}, mel)
        return (ours * direction).sum(), ours

    gradients, ours = jax.jit(jax.grad(spoken, has_aux=True))(params)
    assert wanted.shape == (2, 23 * CONFIG.hop_length)
    np.testing.assert_allclose(ours, wanted.detach().numpy(), atol=1e-5)
    (wanted * torch.tensor(direction)).sum().backward()
    assert_gradients(gradients, theirs)


def test_discriminators(judges):
    params, real, _ = judges
    ours = jax.jit(make_discriminators(JUDGES).apply)({"params": params}, real)
    with torch.no_grad():
        wanted = torch_discriminators(as_torch(params), torch.tensor(real))
    assert len(ours) == len(wanted) == 3
    for (logits, maps), theirs in zip(ours, wanted):
        np.testing.assert_allclose(logits, theirs[-1][:, 0], atol=1e-4)
        assert len(maps) == len(theirs) - 1  # the logits are not matched
        for mine, their in zip(maps, theirs):
            np.testing.assert_allclose(mine, their.transpose(1, 2), atol=1e-4)


def test_hinge_losses_and_their_gradients(judges):
    params, real, fake = judges
    network = make_discriminators(JUDGES)

    def losses(params, fake):
        r, f = (network.apply({"params": params}, x) for x in (jnp.asarray(real), fake))
        judged = discriminator_loss([x for x, _ in r], [x for x, _ in f], "hinge")[0]
        matching = feature_matching_loss([m for _, m in r], [m for _, m in f])[0]
        return judged, generator_loss([x for x, _ in f], "hinge")[0] + 10 * matching

    theirs, their_fake = as_torch(params), torch.tensor(fake, requires_grad=True)
    wanted = torch_losses(theirs, torch.tensor(real), their_fake)
    (wanted[0] + wanted[1]).backward()

    def total(params, fake):
        parts = losses(params, fake)
        return sum(parts), parts

    gradients, found = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, fake)
    for mine, their in zip(found, wanted):
        assert float(mine) == pytest.approx(float(their.detach()), rel=1e-5)
    assert_gradients(gradients[0], theirs)
    expected = their_fake.grad.numpy()
    np.testing.assert_allclose(gradients[1], expected, atol=1e-4 * np.abs(expected).max())
