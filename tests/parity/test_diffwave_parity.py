"""DiffWave against PyTorch's own operations: the network, its gradients, its sampling."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.models.diffwave import (
    DiffWave,
    DiffWaveConfig,
    NoiseSchedule,
    reverse,
    sampling_steps,
)
from jaxclone.tree import flatten

torch = pytest.importorskip("torch")

F = torch.nn.functional
# Rates that are even, as published, so that PyTorch can pad them.
CONFIG = DiffWaveConfig(
    n_mels=5, upsample_rates=(6, 4), channels=6, layers=5, dilation_cycle=3, noise=NoiseSchedule(40)
)
FRAMES = 9


@pytest.fixture(scope="module")
def params():
    """No bias and no kernel is 0, the last one's neither."""
    mel = jnp.zeros((1, 4, CONFIG.n_mels))
    params = nn.unbox(jax.jit(DiffWave(CONFIG).init)(jax.random.key(0), mel)["params"])
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.asarray(x + 0.1 * rng.standard_normal(x.shape), np.float32), params
    )


@pytest.fixture(scope="module")
def heard():
    """Noisy waveforms, the steps they are at (one between two), and mels."""
    rng = np.random.default_rng(2)
    noisy = rng.standard_normal((3, FRAMES * CONFIG.hop_length)).astype(np.float32)
    mel = rng.standard_normal((3, FRAMES, CONFIG.n_mels)).astype(np.float32)
    return noisy, np.array([0.0, 17.0, 20.625], np.float32), mel


def as_torch(tree, grad=False):
    return {k: torch.tensor(np.array(v), requires_grad=grad) for k, v in flatten(tree).items()}


def torch_network(config, params, noisy, time, mel):
    """The published network in PyTorch's operations (paper §3.1, appendix C)."""

    def linear(name, x, layer=None):
        kernel, bias = (params[f"{name}/{part}"] for part in ("kernel", "bias"))
        if layer is not None:
            kernel, bias = kernel[layer], bias[layer]
        return x @ kernel + bias

    def pointwise(name, x, layer=None):
        return linear(name, x.transpose(1, 2), layer).transpose(1, 2)

    grid = torch.arange(config.noise.steps)[:, None] * 10.0 ** (torch.arange(64) * 4.0 / 63.0)
    table = torch.cat([grid.sin(), grid.cos()], 1)
    low, high = time.floor().long(), time.ceil().long()
    step = torch.lerp(table[low], table[high], (time - low)[:, None])
    step = F.silu(linear("step_2", F.silu(linear("step_1", step))))

    image = mel.transpose(1, 2)[:, None]  # one channel of bands x time
    for i, rate in enumerate(config.upsample_rates):
        kernel, bias = params[f"upsample_{i}/kernel"], params[f"upsample_{i}/bias"]
        image = F.conv_transpose2d(
            image, kernel[None, None], bias[None], stride=(1, rate), padding=(1, rate // 2)
        )
        image = F.leaky_relu(image, 0.4)
    condition = image[:, 0]

    x, skips = F.relu(pointwise("first", noisy[:, None])), []
    for layer, dilation in enumerate(config.dilations):
        y = x + linear("blocks/step", step, layer)[..., None]
        kernel = params["blocks/kernel"][layer].permute(2, 1, 0)
        y = F.conv1d(y, kernel, params["blocks/bias"][layer], padding=dilation, dilation=dilation)
        y = y + pointwise("blocks/mel", condition, layer)
        gate, signal = y.chunk(2, 1)
        y = pointwise("blocks/out", torch.sigmoid(gate) * torch.tanh(signal), layer)
        residual, skip = y.chunk(2, 1)
        x = (x + residual) / math.sqrt(2)
        skips.append(skip)
    x = torch.stack(skips).sum(0) / math.sqrt(config.layers)
    return pointwise("last", F.relu(pointwise("skip", x)))[:, 0]


def torch_aligned(config, betas):
    """The training steps of a schedule, by search as published (appendix B)."""
    trained = np.cumprod(1 - np.linspace(config.noise.first, config.noise.last, config.noise.steps))
    steps = []
    for level in np.cumprod(1 - np.array(betas)):
        for t in range(len(trained) - 1):
            if trained[t + 1] <= level <= trained[t]:
                whole = math.sqrt(trained[t]) - math.sqrt(trained[t + 1])
                steps.append(t + (math.sqrt(trained[t]) - math.sqrt(level)) / whole)
                break
    return steps


def torch_sample(config, params, mel, noise, betas):
    """Algorithm 2 with the given noise: noise[n] is added before step n, noise[-1] the start.

    As in lmnt-com/diffwave `inference.py`, every step ends with a clamp, the noisiest too.
    """
    times, x = torch_aligned(config, betas), noise[len(betas)]
    kept = np.cumprod(1 - np.array(betas))
    for n in reversed(range(len(betas))):
        time = torch.full((len(mel),), times[n], dtype=torch.float32)
        told = torch_network(config, params, x, time, mel)
        x = (x - betas[n] / math.sqrt(1 - kept[n]) * told) / math.sqrt(1 - betas[n])
        if n:
            x = x + math.sqrt((1 - kept[n - 1]) / (1 - kept[n]) * betas[n]) * noise[n]
        x = x.clamp(-1, 1)
    return x


def test_the_network_and_its_gradients(params, heard):
    theirs = as_torch(params, grad=True)
    wanted = torch_network(CONFIG, theirs, *map(torch.tensor, heard))
    direction = np.random.default_rng(3).standard_normal(wanted.shape).astype(np.float32)

    def told(params):
        noise = DiffWave(CONFIG).apply({"params": params}, *heard, method="tell_noise")
        return (noise * direction).sum(), noise

    (_, ours), gradients = jax.jit(jax.value_and_grad(told, has_aux=True))(params)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(ours, wanted.detach().numpy(), atol=1e-5)
    (wanted * torch.tensor(direction)).sum().backward()
    for name, gradient in flatten(gradients).items():
        expected = theirs[name].grad.numpy()
        scale = np.abs(expected).max()
        assert scale > 0, name
        np.testing.assert_allclose(gradient / scale, expected / scale, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("sampling", ["fast", "full"])
def test_sampling(params, heard, sampling):
    config, mel = dataclasses.replace(CONFIG, sampling=sampling), heard[2]
    noise = np.random.default_rng(4).standard_normal((41, *heard[0].shape)).astype(np.float32)
    betas = config.fast_schedule if sampling == "fast" else tuple(config.noise.betas)
    with torch.no_grad():
        wanted = torch_sample(config, as_torch(params), *map(torch.tensor, (mel, noise)), betas)
    wanted = wanted.numpy()

    def predict(noisy, time):
        times = jnp.full(len(mel), time)
        network = DiffWave(config)
        return network.apply({"params": params}, noisy, times, mel, method="tell_noise")

    @jax.jit
    def sample(noise):
        return reverse(predict, lambda step: noise[step], sampling_steps(config))

    # Much is clamped on the way, and the network has its say in what is left.
    assert wanted.std() > 0.1
    assert (np.abs(wanted) < 1).mean() > 0.1
    np.testing.assert_allclose(sample(noise), wanted, atol=1e-4)


@pytest.mark.parametrize("config", [DiffWaveConfig.base(), DiffWaveConfig.large(), CONFIG])
def test_the_alignment_of_the_fast_schedule(config):
    aligned = config.noise.align(config.fast_schedule)
    wanted = torch_aligned(config, config.fast_schedule)
    np.testing.assert_allclose(aligned, wanted, atol=1e-9)
    assert aligned[0] == 0
    # All steps of training are aligned with themselves.
    steps = config.noise.steps
    np.testing.assert_allclose(config.noise.align(tuple(config.noise.betas)), range(steps))
