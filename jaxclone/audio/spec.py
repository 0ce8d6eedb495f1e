"""The one description of how sound becomes frames."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jaxclone.types import UserError, require_positive


@dataclasses.dataclass(frozen=True)
class AudioSpec:
    """How waveforms and log-mel spectrograms are related, in config, checkpoint and bundle alike.

    Frames follow the HiFi-GAN convention: the signal is padded by reflection with
    (n_fft - hop_length) / 2 samples a side, so that n samples give n // hop_length frames, the
    first of which is centred on sample hop_length / 2. Where `center` is set, the first is centred
    on sample 0, as librosa and torchaudio have it, and their last frame is left out.

    Attributes:
        sample_rate: Hz.
        n_fft: FFT size in samples.
        hop_length: samples from one frame to the next.
        win_length: length of the (periodic) Hann window in samples.
        n_mels: mel bands.
        fmin: lowest edge of the filterbank in Hz.
        fmax: highest edge in Hz; None is half the sample rate.
        filters: "slaney" has that scale and filters of equal area, "htk" that scale and filters of
            equal height.
        center: whether the first frame is centred on the first sample.
        ceiling: magnitudes are clamped to this before the logarithm; None for not.
        log: base of the logarithm of the mel magnitudes.
        floor: magnitudes are clamped to this before the logarithm.
        power_floor: added to the power of each bin before its square root.
    """

    sample_rate: int = 16_000
    n_fft: int = 1024
    hop_length: int = 320
    win_length: int = 1024
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float | None = None
    filters: Literal["slaney", "htk"] = "slaney"
    center: bool = False
    ceiling: float | None = None
    log: Literal["ln", "log10"] = "ln"
    floor: float = 1e-5
    power_floor: float = 1e-9

    def __post_init__(self) -> None:
        require_positive(self, "sample_rate", "n_mels", "floor")
        require_positive(self, "fmin", "power_floor", or_zero=True)
        if not 0 < self.hop_length <= self.win_length <= self.n_fft:
            raise UserError(
                "AudioSpec needs 0 < hop_length <= win_length <= n_fft, got "
                f"{self.hop_length}, {self.win_length}, {self.n_fft}"
            )
        if (self.n_fft - self.hop_length) % 2:
            raise UserError("AudioSpec needs n_fft - hop_length to be even")
        require_positive(self, "ceiling")
        if self.center and 2 * self.hop_length > self.n_fft:
            raise UserError("AudioSpec needs hop_length <= n_fft / 2 where frames are centred")
        highest = self.sample_rate / 2
        if not self.fmin < (highest if self.fmax is None else self.fmax) <= highest:
            raise UserError(
                "AudioSpec needs fmin < fmax <= sample_rate / 2, got "
                f"fmin={self.fmin:g}, fmax={self.fmax}, sample_rate={self.sample_rate}"
            )

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    @property
    def silence(self) -> float:
        """The log-mel of digital silence.

        >>> round(AudioSpec().silence, 3), round(AudioSpec(log="log10").silence, 3)
        (-11.513, -5.0)
        """
        return (math.log if self.log == "ln" else math.log10)(self.floor)

    def n_frames(self, n_samples: int) -> int:
        """Frames of a signal of n_samples."""
        return n_samples // self.hop_length

    def n_samples(self, seconds: float) -> int:
        """Samples of the longest whole number of frames within `seconds`.

        >>> AudioSpec().n_samples(1.01)
        16000
        """
        return int(seconds * self.frame_rate + 1e-6) * self.hop_length

    def require(self, other: AudioSpec, what: str) -> None:
        """Raises a UserError that names the fields in which `other`, of `what`, differs."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        wrong = [f"{k} {theirs[k]!r} (expected {v!r})" for k, v in mine.items() if theirs[k] != v]
        if wrong:
            raise UserError(f"AudioSpec of {what} does not match: {', '.join(wrong)}")


def speecht5_16k() -> AudioSpec:
    """The mel of SpeechT5 and its HiFi-GAN (transformers `SpeechT5FeatureExtractor`)."""
    return AudioSpec(
        hop_length=256,
        fmin=80.0,
        fmax=7600.0,
        center=True,
        log="log10",
        floor=1e-10,
        power_floor=0.0,
    )


def diffwave_22k() -> AudioSpec:
    """The mel of the published DiffWave models (lmnt-com/diffwave `preprocess.py`).

    There, magnitudes are divided by the energy of the window, and -80 to 20 dB become 0 to 1: an
    affine function of these log-mels, which is the network's own (`DiffWaveConfig.mel_scale`).
    """
    return diffwave_spec(22_050, 256, 1024, 80)


def diffwave_spec(sample_rate: int, hop_length: int, n_fft: int, n_mels: int) -> AudioSpec:
    """As `diffwave_22k` for other sizes; the window is of four hops."""
    energy = window_energy(4 * hop_length)
    return AudioSpec(
        sample_rate=sample_rate,
        n_fft=n_fft,
        hop_length=hop_length,
        win_length=4 * hop_length,
        n_mels=n_mels,
        fmin=20.0,
        filters="htk",
        center=True,
        ceiling=10.0 * energy,
        log="log10",
        floor=1e-4 * energy,
        power_floor=0.0,
    )


def window_energy(win_length: int) -> float:
    """Root of the sum of squares of a periodic Hann window.

    >>> round(window_energy(1024), 3)
    19.596
    """
    return math.sqrt(3 / 8 * win_length)


def hifigan_22k() -> AudioSpec:
    """The mel of the published HiFi-GAN models (jik876/hifi-gan config_v1.json)."""
    return AudioSpec(sample_rate=22_050, hop_length=256, fmax=8000.0)


def melgan_22k() -> AudioSpec:
    """The mel of the published MelGAN models (descriptinc/melgan-neurips `Audio2Mel`)."""
    return AudioSpec(sample_rate=22_050, hop_length=256, log="log10", power_floor=0.0)


def jaxclone_16k() -> AudioSpec:
    """16 kHz with a 20 ms hop: one mel frame for each frame of a wav2vec 2.0 encoder."""
    return AudioSpec()


def jaxclone_24k() -> AudioSpec:
    """24 kHz at the sizes of the published Vocos: 100 bands, a hop of 256."""
    return AudioSpec(sample_rate=24_000, hop_length=256, n_mels=100)
