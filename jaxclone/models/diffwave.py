"""DiffWave: log-mel spectrogram to waveform by diffusion (Kong et al. 2020, arXiv:2009.09761).

A network is trained to tell the noise in a noisy recording. From noise alone, taking off what it
tells a little at a time leaves the recording that the mel describes. The layout is that of
lmnt-com/diffwave `src/diffwave/model.py`, which SpeechBrain follows; the authors' own has weight
norm besides, with some thousand parameters more.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxclone import rng
from jaxclone.audio.spec import AudioSpec
from jaxclone.models.diffusion import Step, reverse, steps_back
from jaxclone.nn.layers import dense, uniform_fan_in
from jaxclone.types import Array, UserError, length_mask, require_positive

# Numbers that say where in the diffusion the network is, and the width of what it makes of them.
_STEP_FEATURES, _STEP_WIDTH = 128, 512
# Of the upsampling: mel bands that it mixes, and the slope of its leaky ReLU.
_BANDS, _SLOPE = 3, 0.4
_TAPS = 3
# Blocks over which dilations may double: the last of so many looks a minute away.
_DOUBLINGS = 21

_kaiming = nn.initializers.he_normal()


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """How much noise each step of the diffusion adds: its variance, rising linearly.

    Attributes:
        steps: of the diffusion, T in the paper.
        first: variance of the first step.
        last: variance of the last.
    """

    steps: int = 50
    first: float = 1e-4
    last: float = 0.05

    def __post_init__(self) -> None:
        require_positive(self, "steps", "first", "last")
        if not self.first <= self.last < 1:
            raise UserError(
                f"a noise schedule rises to below 1, got {self.first:g} to {self.last:g}"
            )

    @property
    def betas(self) -> Float[np.ndarray, " steps"]:
        """Variances of the steps."""
        return np.linspace(self.first, self.last, self.steps)

    @property
    def kept(self) -> Float[np.ndarray, " steps"]:
        """What is left of the recording's power after each step.

        >>> NoiseSchedule(3, 0.1, 0.5).kept.round(3).tolist()
        [0.9, 0.63, 0.315]
        """
        return np.cumprod(1 - self.betas)

    def align(self, betas: tuple[float, ...]) -> Float[np.ndarray, " n"]:
        """The steps of this schedule, with fractions, at which others' noise is as much as its own.

        Paper §3, "fast sampling", by interpolation between the square roots of what is kept.

        Raises:
            UserError: the other schedule has less noise than the first step here, or more than the
                last.
        """
        own, other = np.sqrt(self.kept), np.sqrt(np.cumprod(1 - np.asarray(betas)))
        if other.max() > own[0] + 1e-9 or other.min() < own[-1] - 1e-9:
            raise UserError(
                f"the fast schedule {betas} leaves {other.max() ** 2:.4f} to {other.min() ** 2:.4f}"
                f" of the signal, the noise of training {own[0] ** 2:.4f} to {own[-1] ** 2:.4f}"
            )
        return np.interp(-other, -own, np.arange(self.steps))


@dataclasses.dataclass(frozen=True)
class DiffWaveConfig:
    """Sizes of the network, the noise that it is trained with, and how it speaks.

    Attributes:
        n_mels: mel bands of the input.
        mel_scale: the network sees mel_scale * log_mel + mel_shift.
        mel_shift: see `mel_scale`.
        upsample_rates: factors by which two or more transposed convolutions spread the frames over
            time; their product is the hop length.
        channels: of the residual blocks.
        layers: residual blocks.
        dilation_cycle: dilations are 1, 2, 4, ..., from the start again after so many blocks.
        noise: of training.
        fast_schedule: variances of the few steps of fast sampling.
        sampling: "fast" takes those, "full" all steps of training.
        seed: of the noise that speaking starts from.
        remat: blocks are computed again for their gradient, which saves most of the memory of
            training for a third more work.
    """

    n_mels: int = 80
    mel_scale: float = 1.0
    mel_shift: float = 0.0
    upsample_rates: tuple[int, ...] = (16, 16)
    channels: int = 64
    layers: int = 30
    dilation_cycle: int = 10
    noise: NoiseSchedule = NoiseSchedule()
    fast_schedule: tuple[float, ...] = (1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5)
    sampling: Literal["fast", "full"] = "fast"
    seed: int = 0
    remat: bool = False

    HOW: ClassVar = frozenset({"fast_schedule", "sampling", "seed", "remat"})

    def __post_init__(self) -> None:
        require_positive(self, "n_mels", "upsample_rates", "channels", "layers", "dilation_cycle")
        if min(self.layers, self.dilation_cycle) > _DOUBLINGS:
            raise UserError(
                f"dilations double over at most {_DOUBLINGS} blocks, got a dilation_cycle of "
                f"{self.dilation_cycle} and {self.layers} layers"
            )
        if not self.fast_schedule or not all(0 < beta < 1 for beta in self.fast_schedule):
            raise UserError(f"fast_schedule must lie between 0 and 1, got {self.fast_schedule}")
        self.noise.align(self.fast_schedule)

    @classmethod
    def base(cls) -> DiffWaveConfig:
        """2.62 M parameters (paper §5.1; its 2.64 M count the scales of its weight norm)."""
        return cls()

    @classmethod
    def large(cls) -> DiffWaveConfig:
        """6.89 M parameters (paper §5.1; its 6.91 M count the scales of its weight norm)."""
        return cls(
            channels=128,
            noise=NoiseSchedule(200, 1e-4, 0.02),
            fast_schedule=(1e-4, 1e-3, 0.01, 0.05, 0.2, 0.7),
        )

    @classmethod
    def mini(cls) -> DiffWaveConfig:
        """For a hop of 320, at a sixth of BASE's work a sample; for training on a CPU."""
        # Log-mel lies in about [-11.5, 2]; this brings it to the order of one.
        return cls(
            mel_scale=0.25,
            mel_shift=1.25,
            upsample_rates=(16, 20),
            channels=32,
            layers=16,
            dilation_cycle=8,
        )

    @classmethod
    def tiny(cls) -> DiffWaveConfig:
        """For tests, with a hop of 20 and 8 mel bands."""
        return cls(n_mels=8, upsample_rates=(5, 4), channels=8, layers=4, dilation_cycle=2)

    @property
    def hop_length(self) -> int:
        """Samples a frame.

        >>> DiffWaveConfig.base().hop_length, DiffWaveConfig.mini().hop_length
        (256, 320)
        """
        return math.prod(self.upsample_rates)

    @property
    def dilations(self) -> tuple[int, ...]:
        """Of each block."""
        return tuple(2 ** (i % self.dilation_cycle) for i in range(self.layers))

    @property
    def context_frames(self) -> int:
        """Frames on either side that the noise told in a frame depends on."""
        reach = sum(self.dilations)
        first, last = -reach, self.hop_length - 1 + reach
        for rate in reversed(self.upsample_rates):
            # Sample t depends on the inputs i with 0 <= t + rate // 2 - i * rate < 2 * rate.
            first = -((2 * rate - 1 - rate // 2 - first) // rate)
            last = (last + rate // 2) // rate
        return max(-first, last)

    def require(self, spec: AudioSpec) -> None:
        """Raises a UserError unless this network can speak the mels of `spec`."""
        if self.hop_length != spec.hop_length:
            rates = " x ".join(map(str, self.upsample_rates))
            raise UserError(
                f"the vocoder's upsample_rates give {rates} = {self.hop_length} samples a frame, "
                f"the AudioSpec has hop_length {spec.hop_length}"
            )
        if self.n_mels != spec.n_mels:
            raise UserError(
                f"the vocoder takes n_mels {self.n_mels}, the AudioSpec has {spec.n_mels}"
            )


class DiffWave(nn.Module):
    """The network that tells the noise; called with mels alone, it speaks them.

    Attributes:
        config: sizes.
        dtype: of the computation; noise and waveforms are f32.
    """

    config: DiffWaveConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        hidden = ("channels_in", "channels_out")
        self.upsample = [_Upsample(rate, dtype) for rate in config.upsample_rates]
        self.step_1 = dense(_STEP_WIDTH, hidden, dtype, kernel_init=uniform_fan_in)
        self.step_2 = dense(_STEP_WIDTH, hidden, dtype, kernel_init=uniform_fan_in)
        self.first = dense(config.channels, (None, "channels_out"), dtype, kernel_init=_kaiming)
        self.blocks = nn.scan(
            nn.remat(_Block, prevent_cse=False) if config.remat else _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
            length=config.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, dtype)
        self.skip = dense(config.channels, hidden, dtype, kernel_init=_kaiming)
        self.last = dense(1, ("channels_in", None), dtype, kernel_init=nn.initializers.zeros)

    def __call__(
        self,
        log_mel: Float[Array, "b f m"],
        length: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t"]:
        """Speaks mels.

        Args:
            log_mel: spectrograms of the AudioSpec that the network was trained with.
            length: true frames of each. When given, each waveform is that of its spectrogram
                alone, and 0 after its end.

        Returns:
            f32[b, f * hop_length] in [-1, 1].
        """
        config, (batch, frames, _) = self.config, log_mel.shape
        samples = frames * config.hop_length
        true = None if length is None else length_mask(length, frames)
        condition, mask = self.condition(log_mel, true)
        if self.is_initializing():
            return self.predict(jnp.zeros((batch, samples)), jnp.zeros(batch), condition, mask)
        network = DiffWave(config, self.dtype, parent=None)
        params = {"params": self.variables["params"]}

        def predict(noisy: Array, time: Array) -> Array:
            times = jnp.broadcast_to(time, (batch,))
            return network.apply(params, noisy, times, condition, mask, method="predict")

        def draw(step: Array) -> Array:
            return jnp.broadcast_to(sampling_noise(config, step, 0, frames), (batch, samples))

        waveform = reverse(predict, draw, sampling_steps(config))
        return waveform if mask is None else jnp.where(mask[..., 0], waveform, 0.0)

    def tell_noise(
        self,
        noisy: Float[Array, "b t"],
        time: Float[Array, " b"],
        log_mel: Float[Array, "b f m"],
        true: Bool[Array, "b f"] | None = None,
    ) -> Float[Array, "b t"]:
        """The noise in noisy recordings.

        Args:
            noisy: recordings with noise, f * hop_length samples.
            time: the step of the diffusion that each is at, from 0; may lie between two.
            log_mel: what the recordings are of.
            true: which frames are of the recordings, all when None. What is told in these is what
                would be told without the others; 0 is told in the others.
        """
        return self.predict(noisy, time, *self.condition(log_mel, true))

    def condition(
        self, log_mel: Float[Array, "b f m"], true: Bool[Array, "b f"] | None = None
    ) -> tuple[Float[Array, "b t m"], Array | None]:
        """The mels at the rate of the samples, and which samples are true: bool[b, t, 1]."""
        mask = None if true is None else true[..., None]
        x = (self.config.mel_scale * log_mel + self.config.mel_shift).astype(self.dtype)
        for layer in self.upsample:
            x = nn.leaky_relu(layer(_masked(x, mask)), _SLOPE)
            mask = None if mask is None else jnp.repeat(mask, layer.rate, axis=1)
        return _masked(x, mask), mask

    def predict(
        self,
        noisy: Float[Array, "b t"],
        time: Float[Array, " b"],
        condition: Float[Array, "b t m"],
        mask: Array | None = None,
    ) -> Float[Array, "b t"]:
        """`tell_noise`, given what `condition` makes of the mels."""
        step = step_features(time, self.config.noise.steps).astype(self.dtype)
        step = nn.silu(self.step_2(nn.silu(self.step_1(step))))
        x = nn.relu(self.first(noisy[..., None].astype(self.dtype)))
        carry = (x, jnp.zeros_like(x))
        (_, skip), _ = self.blocks(carry, step, condition, mask, jnp.array(self.config.dilations))
        x = nn.relu(self.skip(skip / math.sqrt(self.config.layers)))
        noise = self.last(x)[..., 0].astype(jnp.float32)
        return noise if mask is None else jnp.where(mask[..., 0], noise, 0.0)


def _masked(x: Array, mask: Array | None) -> Array:
    return x if mask is None else jnp.where(mask, x, 0)


class _Upsample(nn.Module):
    """Spreads [b, t, m] to [b, t * rate, m] by a transposed convolution over time and bands.

    As a sum of products of slices: XLA has no fast one of a single channel, nor of its gradient.
    """

    rate: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b t m"]) -> Float[Array, "b s m"]:
        (batch, time, mels), rate = x.shape, self.rate
        bound = (2 * rate * _BANDS) ** -0.5  # of PyTorch's default

        def init(key: Array, shape: tuple[int, int]) -> Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(init, (None, "kernel")),
            (_BANDS, 2 * rate),
        )
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ()), ())
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        # Every input frame makes 2 * rate samples, of which the second half falls on the next one.
        start = rate // 2
        halves = kernel.reshape(_BANDS, 2, rate, 1)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))[:, :, None]
        spread = sum(
            x[:, 1 - half : 2 + time - half, :, 2 - band : 2 - band + mels] * halves[band, half]
            for band in range(_BANDS)
            for half in range(2)
        )
        spread = spread.reshape(batch, (time + 1) * rate, mels)
        return spread[:, start : start + time * rate] + bias


class _Block(nn.Module):
    """A gated dilated convolution, with a residual and a skip; the shape that `nn.scan` wants.

    The convolution is one product of the three taps laid side by side, so that blocks of any
    dilation run the same code. XLA on a CPU runs convolutions in a loop many times slower.
    """

    config: DiffWaveConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        carry: tuple[Array, Array],
        step: Array,
        condition: Array,
        mask: Array | None,
        dilation: Array,
    ) -> tuple[tuple[Array, Array], None]:
        x, skip = carry
        channels, axes = self.config.channels, ("channels_in", "channels_out")
        step = dense(channels, axes, self.dtype, "step", kernel_init=uniform_fan_in)(step)
        y = x + step[:, None]
        y = _masked(y, mask)
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(_kaiming, ("kernel", *axes)),
            (_TAPS, channels, 2 * channels),
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
            (2 * channels,),
        )
        taps = _neighbours(y, dilation, max(self.config.dilations))
        y = taps @ kernel.reshape(-1, 2 * channels).astype(self.dtype) + bias.astype(self.dtype)
        y += dense(2 * channels, axes, self.dtype, "mel", kernel_init=_kaiming)(condition)
        gate, signal = jnp.split(y, 2, axis=-1)
        y = nn.sigmoid(gate) * jnp.tanh(signal)
        y = dense(2 * channels, axes, self.dtype, "out", kernel_init=_kaiming)(y)
        residual, more = jnp.split(y, 2, axis=-1)
        x = nn.with_logical_constraint((x + residual) / math.sqrt(2), ("batch", "time", None))
        return (x, skip + more), None


def sampling_steps(config: DiffWaveConfig) -> Step:
    """The steps that a network speaks in, see `steps_back`."""
    betas = config.noise.betas if config.sampling == "full" else np.array(config.fast_schedule)
    return steps_back(betas, config.noise.align(tuple(betas)))


def sampling_noise(
    config: DiffWaveConfig, step: Array | int, first: Array | int, frames: int
) -> Float[Array, " t"]:
    """The noise that `reverse` draws at a step, f32[frames * hop_length].

    A function of the step and of each frame's number, so that how long a recording is, and in what
    pieces it is spoken, changes none of it.

    Args:
        config: its seed counts, and its hop length.
        step: index of the step.
        first: number of the first frame.
        frames: how many.
    """
    key = rng.stream(rng.stream(rng.root(config.seed), "diffwave"), "noise", step)
    keys = jax.vmap(lambda frame: jax.random.fold_in(key, frame))(first + jnp.arange(frames))
    return jax.vmap(lambda key: jax.random.normal(key, (config.hop_length,)))(keys).reshape(-1)


def step_features(time: Float[Array, " b"], steps: int) -> Float[Array, "b 128"]:
    """Sines and cosines of a step of the diffusion; between two steps, in between (paper §3.1)."""
    table = jnp.asarray(_step_table(steps))
    low = jnp.clip(jnp.floor(time), 0, steps - 1).astype(jnp.int32)
    high = jnp.minimum(low + 1, steps - 1)
    return table[low] + (table[high] - table[low]) * (time - low)[:, None]


def _step_table(steps: int) -> np.ndarray:
    """f32[steps, 128], to the rounding of PyTorch on a CPU.

    The fastest sines are of some 10^5 radians, where that rounding shows in the third digit, and
    published weights have learnt it.
    """
    half = _STEP_FEATURES // 2
    exponent = np.arange(half, dtype=np.float32) * np.float32(4) / np.float32(half - 1)
    rate = (10.0 ** exponent.astype(np.float64)).astype(np.float32)
    angle = np.arange(steps, dtype=np.float32)[:, None] * rate
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _neighbours(x: Array, dilation: Array, largest: int) -> Array:
    """Each sample with the one `dilation` before and the one after it: [b, t, 3 * c]."""
    padded = jnp.pad(x, ((0, 0), (largest, largest), (0, 0)))
    slices = [
        jax.lax.dynamic_slice_in_dim(padded, largest + tap * dilation, x.shape[1], axis=1)
        for tap in (-1, 0, 1)
    ]
    return jnp.concatenate(slices, axis=-1)
