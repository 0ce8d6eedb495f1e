"""Speaks sentences with espeak-ng: a program of its own, run as `python -m` with its job on stdin.

A separate program for two reasons: espeak-ng's output depends on all that its process has said
before, so that only a fresh one reproduces it; and espeak-ng is under the GPL, so that it
is used as a program and not linked into this library.

Input: one JSON object with `library` and `data` (paths of libespeak-ng and its data) and
`sentences`, each with `text`, `voice` (`<language file>+<variant file>`), `rate` (words a minute),
`pitch` and `range` (0 to 100, 50 is the voice's own).

Output, for each sentence: one line of JSON with `rate` (Hz), `samples` and `phones` ([symbol, first
sample]), then the samples as little-endian 16-bit integers.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any, BinaryIO

# speak_lib.h of espeak-ng 1.52.
_SYNCHRONOUS = 2
_PHONEME_EVENTS, _PHONEME_IPA, _DONT_EXIT = 0x1, 0x2, 0x8000
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
# At the usual 100, some variants exceed 16 bits.
_UNCLIPPED = 50
_UTF8, _END_PAUSE = 0x1, 0x1000
_LIST_TERMINATED, _PHONEME = 0, 7


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def speak(job: dict[str, Any], out: BinaryIO) -> None:
    """Speaks the sentences of a job, see the module."""
    library = ctypes.CDLL(job["library"])
    options = _PHONEME_EVENTS | _PHONEME_IPA | _DONT_EXIT
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, job["data"].encode(), options)
    if rate < 0:
        raise SystemExit(f"espeak-ng does not start with the data in {job['data']}")
    samples = bytearray()
    phones: list[tuple[str, int]] = []

    def receive(wave: Any, count: int, events: Any) -> int:
        if wave and count:
            samples.extend(ctypes.string_at(wave, 2 * count))
        i = 0
        while events[i].type != _LIST_TERMINATED:
            if events[i].type == _PHONEME:
                # All eight bytes may be used, without a zero at the end.
                symbol = bytes(events[i].id)[:8].split(b"\0")[0].decode("utf-8", "ignore")
                phones.append((symbol, events[i].sample))
            i += 1
        return 0

    # Breath is noise, which it otherwise draws from the time of day.
    library.espeak_ng_SetRandSeed(1)
    callback = _CALLBACK(receive)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetParameter(_VOLUME, _UNCLIPPED, 0)
    for sentence in job["sentences"]:
        text, voice = sentence["text"], sentence["voice"]
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SystemExit(f"espeak-ng has no voice {voice}")
        # Choosing a voice sets these back.
        for parameter, name in ((_RATE, "rate"), (_PITCH, "pitch"), (_RANGE, "range")):
            library.espeak_SetParameter(parameter, sentence[name], 0)
        samples.clear()
        phones.clear()
        encoded = text.encode() + b"\0"
        flags = _UTF8 | _END_PAUSE
        if library.espeak_Synth(encoded, len(encoded), 0, 0, 0, flags, None, None) != 0:
            raise SystemExit(f"espeak-ng cannot say {text!r}")
        header = {"rate": rate, "samples": len(samples) // 2, "phones": phones}
        out.write(json.dumps(header).encode() + b"\n")
        out.write(samples)


if __name__ == "__main__":
    speak(json.load(sys.stdin), sys.stdout.buffer)
