"""STFT and mel spectrogram: the only ones of the project, in JAX.

Frames follow the HiFi-GAN convention (Kong et al. 2020; jik876/hifi-gan `meldataset.py`): the
signal is reflected by (n_fft - hop_length) / 2 samples a side and not centred, so that frame i is
centred on sample (i + 1/2) * hop_length; or on sample i * hop_length where the spec says so. Every
function takes any leading axes, is differentiable (also at digital silence) and runs under
`jax.jit` with the spec as a static argument.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
from jaxtyping import Complex, Float, Int

from jaxclone.audio.spec import AudioSpec
from jaxclone.types import Array, UserError, length_mask

# The least power of a bin, far below hearing: the gradient of its square root stays finite.
_TINY = 1e-20
# Steps of the multiplicative inverse of the filterbank; the mel error is nothing after these.
_INVERSE_STEPS = 60


@functools.lru_cache(maxsize=32)
def window(spec: AudioSpec) -> np.ndarray:
    """The periodic Hann window, zero-padded on both sides to n_fft: f32[n_fft]."""
    hann = np.hanning(spec.win_length + 1)[:-1]
    left = (spec.n_fft - spec.win_length) // 2
    padded = np.pad(hann, (left, spec.n_fft - spec.win_length - left)).astype(np.float32)
    padded.flags.writeable = False
    return padded


@functools.lru_cache(maxsize=32)
def mel_filterbank(spec: AudioSpec) -> np.ndarray:
    """Triangular filters (`librosa.filters.mel`).

    Returns:
        f32[n_mels, n_fft // 2 + 1], read-only.
    """
    filters = librosa.filters.mel(
        sr=spec.sample_rate,
        n_fft=spec.n_fft,
        n_mels=spec.n_mels,
        fmin=spec.fmin,
        fmax=spec.fmax,
        htk=spec.filters == "htk",
        norm="slaney" if spec.filters == "slaney" else None,
        dtype=np.float32,
    )
    filters.flags.writeable = False
    return filters


def frame(
    waveform: Float[Array, "*batch t"],
    spec: AudioSpec,
    length: Int[Array, "*batch"] | None = None,
) -> Float[Array, "*batch frames n_fft"]:
    """Cuts reflected waveforms into overlapping frames, without a window.

    Args:
        waveform: samples.
        spec: gives the frame size and the hop.
        length: true samples of each waveform. When given, each one is reflected at its own end, so
            that its first length // hop_length frames are those of the waveform alone; the frames
            after them hold the reflection and then zeros. A length of (n_fft - hop_length) / 2 or
            less, n_fft / 2 where frames are centred, cannot be reflected: what lies beyond its
            start is taken as zero.

    Raises:
        UserError: the waveforms are too short to be reflected, or shorter than one hop.
    """
    n_samples = waveform.shape[-1]
    require_length(n_samples, spec)
    pad, hop = _pad(spec), spec.hop_length
    if length is None:
        widths = [(0, 0)] * (waveform.ndim - 1) + [(pad, pad)]
        padded = jnp.pad(waveform, widths, mode="reflect")
    else:
        padded = _reflect_at(waveform, length, pad)

    return overlapping(padded, spec.n_fft, hop, spec.n_frames(n_samples))


def require_length(n_samples: int, spec: AudioSpec) -> None:
    """Raises a UserError unless so many samples can be reflected, and are a hop or more."""
    shortest = max(_pad(spec) + 1, spec.hop_length)
    if n_samples < shortest:
        raise UserError(
            f"{n_samples} samples are too short for a spectrogram: at least {shortest} are needed "
            f"({1000 * shortest / spec.sample_rate:.0f} ms at {spec.sample_rate} Hz)"
        )


def overlapping(
    signal: Float[Array, "*batch t"], size: int, hop: int, n_frames: int
) -> Float[Array, "*batch {n_frames} {size}"]:
    """Frames of `size` samples, one every `hop`, the first from the first sample; zeros at the end.

    A frame is size / hop neighbouring blocks of one hop: slices and one concatenation, which
    compile to copies both ways, where a gather of indices would have a scatter as its gradient.
    """
    n_blocks = -(-size // hop)
    total = (n_frames + n_blocks - 1) * hop
    widths = [(0, 0)] * (signal.ndim - 1) + [(0, max(0, total - signal.shape[-1]))]
    signal = jnp.pad(signal, widths)[..., :total]
    blocks = signal.reshape(*signal.shape[:-1], -1, hop)
    frames = [blocks[..., i : i + n_frames, :] for i in range(n_blocks)]
    return jnp.concatenate(frames, axis=-1)[..., :size]


def stft(
    waveform: Float[Array, "*batch t"],
    spec: AudioSpec,
    length: Int[Array, "*batch"] | None = None,
) -> Complex[Array, "*batch frames bins"]:
    """Short-time Fourier transform: t // hop_length frames of n_fft // 2 + 1 bins.

    Args:
        waveform: samples.
        spec: FFT size, hop and window.
        length: true samples of each waveform, see `frame`.

    Raises:
        UserError: the waveforms are too short, see `frame`.
    """
    return jnp.fft.rfft(frame(waveform, spec, length) * window(spec), axis=-1)


def istft(
    spectrum: Complex[Array, "*batch frames bins"],
    spec: AudioSpec,
    length: Int[Array, "*batch"] | None = None,
) -> Float[Array, "*batch t"]:
    """Inverse of `stft` by overlap-add over the energy of the window: frames * hop_length samples.

    For a spectrum that is no signal's STFT this is the least-squares signal (Griffin and Lim 1984,
    eq. 6).

    Args:
        spectrum: of `stft`.
        spec: its frames.
        length: true frames of each spectrum. When given, each signal is that of its own frames,
            and 0 after their end.
    """
    frames = jnp.fft.irfft(spectrum, spec.n_fft, axis=-1) * window(spec)
    n_frames = frames.shape[-2]
    energy = jnp.broadcast_to(window(spec) ** 2, (n_frames, spec.n_fft))
    if length is not None:
        mask = length_mask(length, n_frames)[..., None]
        frames, energy = jnp.where(mask, frames, 0), jnp.where(mask, energy, 0)
    start, stop = _pad(spec), _pad(spec) + n_frames * spec.hop_length
    signal = overlap_add(frames, spec.hop_length)[..., start:stop]
    weight = overlap_add(energy, spec.hop_length)[..., start:stop]
    signal /= jnp.maximum(weight, 1e-8)
    if length is None:
        return signal
    return signal * length_mask(length * spec.hop_length, signal.shape[-1])


def magnitude(
    waveform: Float[Array, "*batch t"],
    spec: AudioSpec,
    length: Int[Array, "*batch"] | None = None,
) -> Float[Array, "*batch frames bins"]:
    """Magnitude of the STFT, sqrt(re^2 + im^2 + power_floor) as HiFi-GAN takes it."""
    spectrum = stft(waveform, spec, length)
    power = spectrum.real**2 + spectrum.imag**2 + spec.power_floor
    return jnp.sqrt(jnp.maximum(power, _TINY))


def log_mel(
    waveform: Float[Array, "*batch t"],
    spec: AudioSpec,
    length: Int[Array, "*batch"] | None = None,
) -> Float[Array, "*batch frames n_mels"]:
    """Log-mel spectrogram in the base of the spec, its magnitudes clamped to the spec's floor.

    Args:
        waveform: samples.
        spec: everything else. HiFi-GAN's mel *loss* uses the whole band:
            `dataclasses.replace(spec, fmax=None)`.
        length: true samples of each waveform. When given, the first length // hop_length frames are
            those of the waveform alone and all later ones are silence (the log of the floor).

    Raises:
        UserError: the waveforms are too short, see `frame`.

    >>> log_mel(jnp.zeros(16_000), AudioSpec()).shape
    (50, 80)
    """
    filters = mel_filterbank(spec).T
    mel = jnp.matmul(magnitude(waveform, spec, length), filters, precision="highest")
    mel = _log(jnp.clip(mel, spec.floor, spec.ceiling), spec)
    if length is None:
        return mel
    valid = jnp.arange(mel.shape[-2]) < (jnp.asarray(length) // spec.hop_length)[..., None]
    return jnp.where(valid[..., None], mel, _log(jnp.float32(spec.floor), spec))


def mel_to_magnitude(
    mel: Float[Array, "*batch frames n_mels"], spec: AudioSpec
) -> Float[Array, "*batch frames bins"]:
    """A non-negative magnitude spectrogram whose mel is a given log-mel.

    Starts from the filters spread back over the bins and takes multiplicative steps towards the
    least divergence between the mels (Lee and Seung 2001, theorem 2), which keep it non-negative
    and smooth. Least squares would leave the quiet bands for last, and of the many spectrograms
    with this mel it finds one that is further from speech. Bins that no filter covers are 0.
    """
    filters = jnp.asarray(mel_filterbank(spec))
    target = jnp.exp(mel) if spec.log == "ln" else 10.0**mel
    spread = jnp.matmul(target, filters, precision="highest")
    estimate = spread / jnp.maximum((filters @ filters.sum(0)) @ filters, 1e-12)
    covered = jnp.maximum(filters.sum(0), 1e-12)

    def step(_: Array, estimate: jax.Array) -> jax.Array:
        again = jnp.matmul(estimate, filters.T, precision="highest")
        ratio = target / jnp.maximum(again, 1e-12)
        return estimate * jnp.matmul(ratio, filters, precision="highest") / covered

    return jax.lax.fori_loop(0, _INVERSE_STEPS, step, estimate)


def _pad(spec: AudioSpec) -> int:
    return (spec.n_fft - (0 if spec.center else spec.hop_length)) // 2


def _log(value: Array, spec: AudioSpec) -> jax.Array:
    return jnp.log(value) if spec.log == "ln" else jnp.log10(value)


def _reflect_at(waveform: Array, length: Array, pad: int) -> jax.Array:
    """Pads `pad` samples a side, reflecting each waveform at its own length instead of the end."""
    n_samples = waveform.shape[-1]
    last = jnp.asarray(length)[..., None] - 1
    position = jnp.arange(-pad, n_samples + pad)
    source = jnp.where(position > last, 2 * last - position, jnp.abs(position))
    inside = (position <= last + pad) & (source >= 0) & (source <= last)
    source = jnp.clip(source, 0, n_samples - 1)
    return jnp.where(inside, jnp.take_along_axis(jnp.asarray(waveform), source, axis=-1), 0.0)


def overlap_add(frames: jax.Array, hop: int) -> jax.Array:
    """Adds frames [..., f, size] at every hop: [..., (f + ceil(size / hop) - 1) * hop]."""
    *lead, n_frames, size = frames.shape
    n_blocks = -(-size // hop)
    frames = jnp.pad(frames, [(0, 0)] * (len(lead) + 1) + [(0, n_blocks * hop - size)])
    blocks = frames.reshape(*lead, n_frames, n_blocks, hop)
    out = jnp.zeros((*lead, n_frames + n_blocks - 1, hop), frames.dtype)
    for i in range(n_blocks):
        out = out.at[..., i : i + n_frames, :].add(blocks[..., i, :])
    return out.reshape(*lead, -1)
