"""HiFi-GAN in PyTorch's own layers, for the benchmarks to run beside ours."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from jaxclone.models.discriminators import ConvSpec, DiscriminatorConfig
from jaxclone.models.hifigan import HiFiGANConfig

_SLOPE = 0.1


def _normed(layer: nn.Module, trained: bool) -> nn.Module:
    return parametrizations.weight_norm(layer) if trained else layer


class Generator(nn.Module):
    """The generator: f32[b, m, f] to f32[b, t].

    Args:
        config: sizes.
        trained: with weight norm; without it, it is the generator as used for inference.
    """

    def __init__(self, config: HiFiGANConfig, trained: bool = False) -> None:
        super().__init__()
        self.kind = config.resblock
        channels = config.channels
        self.first = _normed(nn.Conv1d(config.n_mels, channels, 7, padding=3), trained)
        self.upsample, self.blocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernels):
            up = nn.ConvTranspose1d(
                channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2
            )
            self.upsample.append(_normed(up, trained))
            channels //= 2
            stage = nn.ModuleList()
            for taps, dilations in zip(config.resblock_kernels, config.resblock_dilations):
                reaches = [d for dilation in dilations for d in (dilation, 1)[: 3 - self.kind]]
                stage.append(
                    nn.ModuleList(
                        _normed(
                            nn.Conv1d(channels, channels, taps, dilation=d, padding=pad), trained
                        )
                        for d in reaches
                        for pad in [d * (taps - 1) // 2]
                    )
                )
            self.blocks.append(stage)
        self.last = _normed(nn.Conv1d(channels, 1, 7, padding=3), trained)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = self.first(mel)
        for up, stage in zip(self.upsample, self.blocks):
            x = up(F.leaky_relu(x, _SLOPE))
            x = sum(self._residual(block, x) for block in stage) / len(stage)
        return torch.tanh(self.last(F.leaky_relu(x)))[:, 0]

    def _residual(self, layers: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        for i in range(0, len(layers), 3 - self.kind):
            y = x
            for layer in layers[i : i + 3 - self.kind]:
                y = layer(F.leaky_relu(y, _SLOPE))
            x = x + y
        return x


class Discriminators(nn.Module):
    """The discriminators: f32[b, t] to the feature maps of each, its logits last."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.periods = config.periods
        self.by_period = nn.ModuleList(self._period(config) for _ in config.periods)
        self.by_scale = nn.ModuleList(
            self._scale(config.scale_layers, i == 0) for i in range(config.scales)
        )

    @staticmethod
    def _period(config: DiscriminatorConfig) -> nn.ModuleList:
        sizes = (1, *config.period_channels)
        half = (config.period_kernel - 1) // 2
        layers = [
            nn.Conv2d(a, b, (config.period_kernel, 1), (stride, 1), (half, 0))
            for i, (a, b) in enumerate(itertools.pairwise(sizes))
            for stride in [config.period_stride if i < len(sizes) - 2 else 1]
        ]
        layers.append(nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0)))
        return nn.ModuleList(parametrizations.weight_norm(layer) for layer in layers)

    @staticmethod
    def _scale(specs: tuple[ConvSpec, ...], spectral: bool) -> nn.ModuleList:
        norm = parametrizations.spectral_norm if spectral else parametrizations.weight_norm
        layers, channels = nn.ModuleList(), 1
        for spec in (*specs, ConvSpec(1, 3)):
            half = (spec.kernel - 1) // 2
            layer = nn.Conv1d(
                channels, spec.channels, spec.kernel, spec.stride, half, groups=spec.groups
            )
            layers.append(norm(layer))
            channels = spec.channels
        return layers

    def forward(self, waveform: torch.Tensor) -> list[list[torch.Tensor]]:
        maps = []
        for period, layers in zip(self.periods, self.by_period):
            x = F.pad(waveform[:, None], (0, -waveform.shape[1] % period), mode="reflect")
            maps.append(self._maps(layers, x.unflatten(2, (-1, period))))
        x = waveform[:, None]
        for i, layers in enumerate(self.by_scale):
            x = F.avg_pool1d(x, 4, 2, padding=2) if i else x
            maps.append(self._maps(layers, x))
        return maps

    @staticmethod
    def _maps(layers: nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for layer in layers[:-1]:
            x = F.leaky_relu(layer(x), _SLOPE)
            maps.append(x)
        return [*maps, layers[-1](x)]
