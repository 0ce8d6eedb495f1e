"""The published vocoders in PyTorch, as their authors lay them out: random weights for tests.

Written from the papers; the names of the parameters are those of the public repositories.
"""

from __future__ import annotations

import json
import warnings

import torch
from torch import nn
from torch.nn import functional as F


def weight_normed(layer):
    """As `torch.nn.utils.weight_norm` had it before 2.0: weight_g and weight_v."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def without_weight_norm(model):
    for layer in model.modules():
        if hasattr(layer, "weight_g"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                nn.utils.remove_weight_norm(layer)
    return model


def randomised(model, size=0.1):
    """Every parameter moved by noise: no bias is 0, and no gain the norm of its direction."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def conv(inputs, outputs, kernel, dilation=1, **options):
    reach = dilation * (kernel - 1) // 2
    return weight_normed(
        nn.Conv1d(inputs, outputs, kernel, dilation=dilation, padding=reach, **options)
    )


# HiFi-GAN, jik876/hifi-gan.


class HiFiGANBlock(nn.Module):
    def __init__(self, kind, channels, kernel, dilations):
        super().__init__()
        first = nn.ModuleList(conv(channels, channels, kernel, d) for d in dilations)
        if kind == 1:
            self.convs1 = first
            self.convs2 = nn.ModuleList(conv(channels, channels, kernel) for _ in dilations)
        else:
            self.convs = first

    def forward(self, x):
        if hasattr(self, "convs"):
            for layer in self.convs:
                x = x + layer(F.leaky_relu(x, 0.1))
            return x
        for dilated, plain in zip(self.convs1, self.convs2):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, 0.1)), 0.1))
        return x


class HiFiGAN(nn.Module):
    """f32[b, mels, frames] to f32[b, 1, samples]."""

    def __init__(self, config):
        super().__init__()
        self.kernels = len(config.resblock_kernels)
        width = config.channels
        self.conv_pre = conv(config.n_mels, width, 7)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernels):
            up = nn.ConvTranspose1d(width, width // 2, kernel, rate, (kernel - rate) // 2)
            self.ups.append(weight_normed(up))
            width //= 2
            for shape in zip(config.resblock_kernels, config.resblock_dilations):
                self.resblocks.append(HiFiGANBlock(config.resblock, width, *shape))
        self.conv_post = conv(width, 1, 7)

    def forward(self, mel):
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            blocks = self.resblocks[i * self.kernels : (i + 1) * self.kernels]
            x = sum(block(x) for block in blocks) / self.kernels
        return torch.tanh(self.conv_post(F.leaky_relu(x)))


class Judge(nn.Module):
    """One discriminator: convolutions with leaky ReLUs; its maps are [b, c, time, ...]."""

    def __init__(self, layers, last):
        super().__init__()
        self.convs, self.conv_post = nn.ModuleList(layers), last

    def forward(self, x):
        maps = []
        for layer in self.convs:
            x = F.leaky_relu(layer(x), 0.1)
            maps.append(x)
        return [*maps, self.conv_post(x)]


class ByPeriod(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.periods = config.periods
        channels, kernel = (1, *config.period_channels), config.period_kernel
        last = len(config.period_channels) - 1

        def judge():
            layers = [
                nn.Conv2d(
                    channels[i],
                    channels[i + 1],
                    (kernel, 1),
                    (config.period_stride if i < last else 1, 1),
                    (kernel // 2, 0),
                )
                for i in range(last + 1)
            ]
            end = nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0))
            return Judge(map(weight_normed, layers), weight_normed(end))

        self.discriminators = nn.ModuleList(judge() for _ in self.periods)

    def forward(self, waveform):
        said = []
        for period, judge in zip(self.periods, self.discriminators):
            x = F.pad(waveform, (0, -waveform.shape[-1] % period), mode="reflect")
            said.append(judge(x.unflatten(-1, (-1, period))))
        return said


class ByScale(nn.Module):
    def __init__(self, config):
        super().__init__()

        def judge(normed):
            inputs, layers = 1, []
            for spec in config.scale_layers:
                layers.append(
                    normed(
                        nn.Conv1d(
                            inputs,
                            spec.channels,
                            spec.kernel,
                            spec.stride,
                            spec.kernel // 2,
                            groups=spec.groups,
                        )
                    )
                )
                inputs = spec.channels
            return Judge(layers, normed(nn.Conv1d(inputs, 1, 3, padding=1)))

        self.discriminators = nn.ModuleList(
            judge(weight_normed if i else nn.utils.spectral_norm) for i in range(config.scales)
        )

    def forward(self, waveform):
        said = []
        for judge in self.discriminators:
            said.append(judge(waveform))
            waveform = F.avg_pool1d(waveform, 4, 2, 2)
        return said


def converged(by_scale):
    """Singular vectors as after some training: a forward pass in training moves them one step."""
    by_scale.train()
    with torch.no_grad():
        for _ in range(30):
            by_scale(torch.zeros(1, 1, 200))
    return by_scale.eval()


def hifigan_settings(config, audio):
    """What `config.json` says."""
    return {
        "resblock": str(config.resblock),
        "num_gpus": 0,
        "batch_size": 16,
        "learning_rate": 0.0002,
        "upsample_rates": config.upsample_rates,
        "upsample_kernel_sizes": config.upsample_kernels,
        "upsample_initial_channel": config.channels,
        "resblock_kernel_sizes": config.resblock_kernels,
        "resblock_dilation_sizes": config.resblock_dilations,
        "segment_size": 8192,
        "num_mels": audio.n_mels,
        "num_freq": audio.n_fft + 1,
        "n_fft": audio.n_fft,
        "hop_size": audio.hop_length,
        "win_size": audio.win_length,
        "sampling_rate": audio.sample_rate,
        "fmin": 0,
        "fmax": None if audio.fmax is None else int(audio.fmax),
        "fmax_for_loss": None,
    }


def save_hifigan(folder, settings, generator, judges=(), number="02500000"):
    """A folder as a training of that repository leaves it."""
    (folder / "config.json").write_text(json.dumps(settings))
    torch.save({"generator": generator.state_dict()}, folder / f"g_{number}")
    if judges:
        by_period, by_scale = judges
        optimiser = torch.optim.AdamW(by_scale.parameters()).state_dict()
        parts = {
            "mpd": by_period.state_dict(),
            "msd": by_scale.state_dict(),
            "optim_g": optimiser,
            "optim_d": optimiser,
            "steps": int(number),
            "epoch": 3100,
        }
        torch.save(parts, folder / f"do_{number}")


# MelGAN, descriptinc/melgan-neurips.


class MelGANBlock(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        self.block = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.ReflectionPad1d(dilation),
            weight_normed(nn.Conv1d(width, width, 3, dilation=dilation)),
            nn.LeakyReLU(0.2),
            conv(width, width, 1),
        )
        self.shortcut = conv(width, width, 1)

    def forward(self, x):
        return self.shortcut(x) + self.block(x)


class MelGAN(nn.Module):
    """f32[b, mels, frames] to f32[b, 1, samples]."""

    def __init__(self, config):
        super().__init__()
        width = config.channels
        layers = [nn.ReflectionPad1d(3), weight_normed(nn.Conv1d(config.n_mels, width, 7))]
        for rate in config.rates:
            up = nn.ConvTranspose1d(width, width // 2, 2 * rate, rate, rate // 2)
            layers += [nn.LeakyReLU(0.2), weight_normed(up)]
            width //= 2
            layers += [MelGANBlock(width, 3**j) for j in range(config.layers)]
        layers += [nn.LeakyReLU(0.2), nn.ReflectionPad1d(3)]
        layers += [weight_normed(nn.Conv1d(width, 1, 7)), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, mel):
        return self.model(mel)


class MelGANJudge(nn.Module):
    def __init__(self, specs):
        super().__init__()
        first, *middle = specs
        layers = [
            nn.Sequential(
                nn.ReflectionPad1d(first.kernel // 2),
                weight_normed(nn.Conv1d(1, first.channels, first.kernel)),
                nn.LeakyReLU(0.2),
            )
        ]
        width = first.channels
        for spec in middle:
            layer = nn.Conv1d(
                width,
                spec.channels,
                spec.kernel,
                spec.stride,
                spec.kernel // 2,
                groups=spec.groups,
            )
            layers.append(nn.Sequential(weight_normed(layer), nn.LeakyReLU(0.2)))
            width = spec.channels
        layers.append(conv(width, 1, 3))
        self.model = nn.ModuleDict({f"layer_{i}": layer for i, layer in enumerate(layers)})

    def forward(self, x):
        said = []
        for layer in self.model.values():
            x = layer(x)
            said.append(x)
        return said


class MelGANJudges(nn.Module):
    def __init__(self, config):
        super().__init__()
        judges = {f"disc_{i}": MelGANJudge(config.layers) for i in range(config.scales)}
        self.model = nn.ModuleDict(judges)

    def forward(self, waveform):
        said = []
        for judge in self.model.values():
            said.append(judge(waveform))
            waveform = F.avg_pool1d(waveform, 4, 2, 1, count_include_pad=False)
        return said


# DiffWave, lmnt-com/diffwave.


class DiffWaveSteps(nn.Module):
    def __init__(self, steps):
        super().__init__()
        angles = torch.arange(steps)[:, None] * 10.0 ** (torch.arange(64) * 4.0 / 63.0)
        table = torch.cat([angles.sin(), angles.cos()], 1)
        self.register_buffer("embedding", table, persistent=False)
        self.projection1, self.projection2 = nn.Linear(128, 512), nn.Linear(512, 512)

    def forward(self, step):
        return F.silu(self.projection2(F.silu(self.projection1(self.embedding[step]))))


class DiffWaveUpsampler(nn.Module):
    def __init__(self, first, second):
        super().__init__()

        def layer(rate):
            return nn.ConvTranspose2d(1, 1, (3, 2 * rate), (1, rate), (1, rate // 2))

        self.conv1, self.conv2 = layer(first), layer(second)

    def forward(self, mel):
        return F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(mel[:, None]), 0.4)), 0.4)[:, 0]


class DiffWaveBlock(nn.Module):
    def __init__(self, mels, width, dilation):
        super().__init__()
        self.dilated_conv = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.diffusion_projection = nn.Linear(512, width)
        self.conditioner_projection = nn.Conv1d(mels, 2 * width, 1)
        self.output_projection = nn.Conv1d(width, 2 * width, 1)

    def forward(self, x, step, condition):
        y = self.dilated_conv(x + self.diffusion_projection(step)[..., None])
        gate, signal = (y + self.conditioner_projection(condition)).chunk(2, 1)
        residual, skip = self.output_projection(gate.sigmoid() * signal.tanh()).chunk(2, 1)
        return (x + residual) / 2**0.5, skip


class DiffWave(nn.Module):
    """Noisy f32[b, samples], i64[b] steps, f32[b, mels, frames] to the noise f32[b, 1, samples]."""

    def __init__(self, mels, width, layers, cycle, steps, rates=(16, 16)):
        super().__init__()
        self.input_projection = nn.Conv1d(1, width, 1)
        self.diffusion_embedding = DiffWaveSteps(steps)
        self.spectrogram_upsampler = DiffWaveUpsampler(*rates)
        self.residual_layers = nn.ModuleList(
            DiffWaveBlock(mels, width, 2 ** (i % cycle)) for i in range(layers)
        )
        self.skip_projection = nn.Conv1d(width, width, 1)
        self.output_projection = nn.Conv1d(width, 1, 1)

    def forward(self, noisy, step, mel):
        x = F.relu(self.input_projection(noisy[:, None]))
        step, condition = self.diffusion_embedding(step), self.spectrogram_upsampler(mel)
        total = 0
        for layer in self.residual_layers:
            x, skip = layer(x, step, condition)
            total = total + skip
        x = self.skip_projection(total / len(self.residual_layers) ** 0.5)
        return self.output_projection(F.relu(x))
