"""Whether two recordings are of one speaker, by a verifier that no model here was trained with."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxclone.audio.io import resample
from jaxclone.types import UserError


class SpeakerVerifier:
    """GE2E (Wan et al. 2018) as published with the resemblyzer package, on the CPU.

    Of two recordings of some seconds it gives a cosine of about 0.9 for one speaker and 0.55 for
    two. Report the seconds of both with every score.
    """

    def __init__(self) -> None:
        """Loads the weights that the package carries.

        Raises:
            UserError: the package is not installed.
        """
        try:
            with warnings.catch_warnings():
                # Of webrtcvad and of resemblyzer, at their import.
                warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
                warnings.filterwarnings("ignore", ".*scipy.ndimage", DeprecationWarning)
                import resemblyzer
                import torch
        except ImportError as error:
            raise UserError(
                f"speaker similarity needs resemblyzer ({error}): pip install 'jaxclone[eval]'"
            ) from None
        self._package: Any = resemblyzer
        self._torch: Any = torch
        self._encoder: Any = resemblyzer.VoiceEncoder("cpu", verbose=False)

    def embed(
        self, waveform: Float[np.ndarray, " t"], sample_rate: int
    ) -> Float[np.ndarray, " 256"]:
        """The voice of a recording as a vector of unit norm, long pauses left out.

        Raises:
            UserError: nothing in the recording sounds like speech.
        """
        rate = self._package.sampling_rate
        speech = resample(waveform, sample_rate, rate)
        if speech.any():  # of silence the package would take the logarithm
            speech = self._package.preprocess_wav(speech)
        if not speech.any():
            raise UserError("speaker similarity: no speech was found in the recording")
        threads = self._torch.get_num_threads()
        # An LSTM this small is ten times faster on one thread than on several.
        self._torch.set_num_threads(1)
        try:
            return self._encoder.embed_utterance(speech)
        finally:
            self._torch.set_num_threads(threads)

    def similarity(
        self, a: Float[np.ndarray, " t"], b: Float[np.ndarray, " t2"], sample_rate: int
    ) -> float:
        """Cosine of the embeddings of two recordings."""
        return cosine(self.embed(a, sample_rate), self.embed(b, sample_rate))


def cosine(a: Float[np.ndarray, " d"], b: Float[np.ndarray, " d"]) -> float:
    """Cosine of two vectors.

    >>> cosine(np.array([1.0, 0.0]), np.array([3.0, 4.0]))
    0.6
    """
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
