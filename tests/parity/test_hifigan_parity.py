"""HiFi-GAN against Hugging Face's generator and against PyTorch's own operations."""

from __future__ import annotations

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.models.discriminators import ConvSpec, DiscriminatorConfig, Discriminators
from jaxclone.models.hifigan import Generator, HiFiGANConfig
from jaxclone.nn.weight_norm import SPECTRAL, fold, power_iteration
from jaxclone.tree import flatten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

F = torch.nn.functional
TINY = dataclasses.replace(
    HiFiGANConfig.tiny(),
    upsample_kernels=(11, 8),
    resblock_kernels=(3, 7),
    resblock_dilations=((1, 3), (2, 4)),
)
CONFIGS = {"resblock1": TINY, "resblock2": dataclasses.replace(TINY, resblock=2)}
JUDGES = DiscriminatorConfig(
    periods=(2, 3, 5),
    period_channels=(4, 8, 6),
    scales=3,
    scale_layers=(ConvSpec(4, 15), ConvSpec(8, 41, 2, 4), ConvSpec(8, 41, 4, 8), ConvSpec(6, 5)),
)


def generator_parameters(config):
    mel = jnp.zeros((1, 4, config.n_mels))
    params = nn.unbox(jax.jit(Generator(config).init)(jax.random.key(0), mel)["params"])
    key = jax.random.key(1)  # no bias is 0, and no scale the norm of its direction
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), params)


def mels(config, frames=23):
    return np.random.default_rng(2).normal(size=(2, frames, config.n_mels)).astype(np.float32)


def as_torch(tree, grad=False):
    return {k: torch.tensor(np.asarray(v), requires_grad=grad) for k, v in flatten(tree).items()}


def weight(params, name, axis):
    """A kernel in PyTorch's layout; `axis` is the one it is normalised for there."""
    if f"{name}/kernel" in params:
        return params[f"{name}/kernel"].permute(2, 1, 0)
    v, g = (params[f"{name}/{part}"].permute(2, 1, 0) for part in ("direction", "scale"))
    if axis:  # a transposed convolution: input channels first
        v, g = v.transpose(0, 1), g.transpose(0, 1)
    return torch._weight_norm(v, g, 0)


def conv(params, name, x, **options):
    return F.conv1d(x, weight(params, name, 0), params[f"{name}/bias"], **options)


def torch_generator(config, params, mel):
    """The published generator in PyTorch's operations (Kong et al. 2020 §2.2, appendix A.1)."""

    def residual(x, name, kernel, dilations):
        for i, d in enumerate(dilations):
            y = F.leaky_relu(x, 0.1)
            y = conv(params, f"{name}/dilated_{i}", y, dilation=d, padding=d * (kernel - 1) // 2)
            if config.resblock == 1:
                y = F.leaky_relu(y, 0.1)
                y = conv(params, f"{name}/plain_{i}", y, padding=(kernel - 1) // 2)
            x = x + y
        return x

    x = conv(params, "first", mel.transpose(1, 2), padding=3)
    for i, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernels)):
        name = f"upsample_{i}"
        x = F.conv_transpose1d(
            F.leaky_relu(x, 0.1),
            weight(params, name, 1),
            params[f"{name}/bias"],
            stride=rate,
            padding=(kernel - rate) // 2,
        )
        shapes = zip(config.resblock_kernels, config.resblock_dilations)
        x = torch.stack([residual(x, f"block_{i}_{j}", *s) for j, s in enumerate(shapes)]).mean(0)
    return torch.tanh(conv(params, "last", F.leaky_relu(x), padding=3))[:, 0]


def torch_period(params, period, waveform):
    """A period discriminator as published, with (k, 1) convolutions over [time, phase]."""
    samples = waveform.shape[1]
    x = F.pad(waveform[:, None], (0, -samples % period), mode="reflect")
    x = x.reshape(len(waveform), 1, -1, period)
    maps, last = [], len(JUDGES.period_channels) - 1
    for i in range(len(JUDGES.period_channels)):
        name = f"period_{period}/conv_{i}"
        kernel, bias = weight(params, name, 0)[..., None], params[f"{name}/bias"]
        x = F.conv2d(x, kernel, bias, stride=(3 if i < last else 1, 1), padding=(2, 0))
        x = F.leaky_relu(x, 0.1)
        maps.append(x)
    name = f"period_{period}/last"
    maps.append(
        F.conv2d(x, weight(params, name, 0)[..., None], params[f"{name}/bias"], padding=(1, 0))
    )
    return [m.permute(0, 3, 2, 1) for m in maps]  # as ours: [b, period, time, c]


def torch_scale(params, scale, waveform):
    """A scale discriminator; the first divides its kernels by their largest singular value."""
    x = waveform[:, None]
    for _ in range(scale):
        x = F.avg_pool1d(x, 4, 2, padding=2)
    maps = []
    for i, spec in enumerate((*JUDGES.scale_layers, ConvSpec(1, 3))):
        name = f"scale_{scale}/" + (f"conv_{i}" if i < len(JUDGES.scale_layers) else "last")
        kernel = weight(params, name, 0)
        if scale == 0:
            kernel = kernel / torch.linalg.matrix_norm(kernel.flatten(1), 2)
        options = {"stride": spec.stride, "groups": spec.groups, "padding": (spec.kernel - 1) // 2}
        x = F.conv1d(x, kernel, params[f"{name}/bias"], **options)
        if not name.endswith("last"):
            x = F.leaky_relu(x, 0.1)
        maps.append(x.transpose(1, 2))
    return maps


@pytest.fixture(scope="module")
def judges():
    """Parameters of the discriminators and singular vectors that have converged."""
    variables = nn.unbox(
        jax.jit(Discriminators(JUDGES).init)(jax.random.key(0), jnp.zeros((1, 600)))
    )
    params = variables["params"]
    step = jax.jit(power_iteration)
    for _ in range(500):
        variables[SPECTRAL] = step(params, variables[SPECTRAL])
    return {"params": params, SPECTRAL: variables[SPECTRAL]}


@pytest.fixture(scope="module")
def waveform():
    return np.random.default_rng(3).normal(size=(2, 601)).astype(np.float32)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_generator_and_its_gradients(config):
    params, mel = generator_parameters(config), mels(config)
    theirs = as_torch(params, grad=True)
    wanted = torch_generator(config, theirs, torch.tensor(mel))
    ours = jax.jit(Generator(config).apply)({"params": params}, mel)
    assert wanted.shape == (2, 23 * config.hop_length)
    np.testing.assert_allclose(ours, wanted.detach().numpy(), atol=1e-5)

    direction = np.random.default_rng(4).normal(size=ours.shape).astype(np.float32)
    (wanted * torch.tensor(direction)).sum().backward()
    gradients = flatten(
        jax.jit(
            jax.grad(lambda p: (Generator(config).apply({"params": p}, mel) * direction).sum())
        )(params)
    )
    for name, gradient in gradients.items():
        expected = theirs[name].grad.numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradient / scale, expected / scale, atol=1e-4, err_msg=name)


def test_generator_against_hugging_face():
    # Its one kind of residual block is the first.
    config, mel = TINY, mels(TINY)
    model = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=config.n_mels,
            upsample_initial_channel=config.channels,
            upsample_rates=list(config.upsample_rates),
            upsample_kernel_sizes=list(config.upsample_kernels),
            resblock_kernel_sizes=list(config.resblock_kernels),
            resblock_dilation_sizes=[list(d) for d in config.resblock_dilations],
            normalize_before=False,
        )
    )
    ours, generator = {}, torch.Generator().manual_seed(5)
    for name, value in model.state_dict().items():
        x = value.copy_(0.2 * torch.randn(value.shape, generator=generator))
        kernels = len(config.resblock_kernels)
        if match := re.fullmatch(r"resblocks\.(\d+)\.convs(\d)\.(\d+)\.(\w+)", name):
            block, second, i, part = match.groups()
            stage, j = divmod(int(block), kernels)
            path = f"block_{stage}_{j}/{'dilated' if second == '1' else 'plain'}_{i}"
        elif match := re.fullmatch(r"upsampler\.(\d)\.(\w+)", name):
            path, part = f"upsample_{match[1]}", match[2]
            x = x if part == "bias" else x.transpose(0, 1)
        elif match := re.fullmatch(r"conv_(pre|post)\.(\w+)", name):
            path, part = {"pre": "first", "post": "last"}[match[1]], match[2]
        else:
            continue  # the mean and scale of a mel that is not normalised
        leaf = ours
        for key in path.split("/"):
            leaf = leaf.setdefault(key, {})
        leaf["bias" if part == "bias" else "kernel"] = np.asarray(
            x if part == "bias" else x.permute(2, 1, 0)
        )
    with torch.no_grad():
        wanted = model(torch.tensor(mel)).numpy()
    assert np.abs(wanted).std() > 0.01
    np.testing.assert_allclose(
        jax.jit(Generator(config).apply)({"params": ours}, mel), wanted, atol=1e-5
    )


def test_folding_gives_the_same_kernels():
    params = generator_parameters(TINY)
    whole, folded = as_torch(params), as_torch(fold(params))
    for name in ("first", "upsample_0", "block_0_1/plain_1"):
        axis = name.startswith("upsample")
        kernel = weight(folded, name, axis)
        kernel = kernel.transpose(0, 1) if axis else kernel
        np.testing.assert_allclose(kernel, weight(whole, name, axis), atol=1e-6)


def test_discriminators(judges, waveform):
    ours = jax.jit(Discriminators(JUDGES).apply)(judges, waveform)
    params, x = as_torch(judges["params"]), torch.tensor(waveform)
    with torch.no_grad():
        wanted = [torch_period(params, period, x) for period in JUDGES.periods]
        wanted += [torch_scale(params, scale, x) for scale in range(JUDGES.scales)]
    assert len(ours) == len(wanted)
    for (logits, maps), theirs in zip(ours, wanted):
        np.testing.assert_allclose(logits, theirs[-1][..., 0], atol=1e-4)
        assert len(maps) == len(theirs)
        for mine, their in zip(maps, theirs):
            np.testing.assert_allclose(mine, their, atol=1e-4)


def test_gradients_of_the_discriminators(judges, waveform):
    def said(outputs):
        return sum(abs(m).mean() for maps in outputs for m in maps)

    def loss(params):
        variables = {"params": params, SPECTRAL: judges[SPECTRAL]}
        return said([maps for _, maps in Discriminators(JUDGES).apply(variables, waveform)])

    theirs, x = as_torch(judges["params"], grad=True), torch.tensor(waveform)
    said(
        [torch_period(theirs, period, x) for period in JUDGES.periods]
        + [torch_scale(theirs, scale, x) for scale in range(JUDGES.scales)]
    ).backward()
    for name, gradient in flatten(jax.jit(jax.grad(loss))(judges["params"])).items():
        expected = theirs[name].grad.numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradient / scale, expected / scale, atol=2e-4, err_msg=name)
