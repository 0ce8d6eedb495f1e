"""Recordings in and out, and the one line that each bad one gets."""

from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile

from jaxclone.audio import io
from jaxclone.types import UserError

RATE = 16_000


def tone(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * 220 * t) + 0.1 * np.sin(2 * np.pi * 1330 * t)).astype("f4")


def message(path, *args) -> str:
    with pytest.raises(UserError) as error:
        io.read(path, RATE)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_write_then_read_is_exact_to_half_a_step(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    io.write(path, tone(), RATE)
    back = io.read(path, RATE)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, tone(), atol=0.5 / 32768 + 1e-7)
    io.write(path, back, RATE)
    np.testing.assert_array_equal(io.read(path, RATE), back)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_formats_and_rates(tmp_path, suffix, rate):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1.0, rate), rate)
    back = io.read(path, RATE)
    assert abs(len(back) - RATE) <= (1 if suffix in ("wav", "flac") else 1200)
    level = np.sqrt(np.mean(back[4000:12000] ** 2))
    assert level == pytest.approx(np.sqrt(np.mean(tone() ** 2)), rel=0.03)


def test_96_khz_stereo_is_mixed_and_resampled(tmp_path):
    path = tmp_path / "a.wav"
    left, right = tone(0.5, 96_000), 0.5 * tone(0.5, 96_000)
    soundfile.write(path, np.stack([left, right], axis=1), 96_000)
    back = io.read(path, RATE)
    assert back.shape == (RATE // 2,)
    np.testing.assert_allclose(back[500:-500], 0.75 * tone(0.5)[500:-500], atol=2e-3)


def test_8_khz_is_accepted(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(0.5, 8_000), 8_000)
    back = io.read(path, RATE)
    assert back.shape == (RATE // 2,)
    np.testing.assert_allclose(back[500:-500], tone(0.5)[500:-500], atol=2e-3)


def test_louder_than_full_scale_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, 5 * tone(), RATE, subtype="FLOAT")
    back = io.read(path, RATE)
    assert np.abs(back).max() == pytest.approx(1.0)
    assert np.corrcoef(back, tone())[0, 1] > 0.99999


def test_missing(tmp_path):
    path = tmp_path / "a.wav"
    assert message(path) == f"{path} does not exist"


def test_folder(tmp_path):
    assert message(tmp_path) == f"{tmp_path} is a folder, not a recording"


def test_empty(tmp_path):
    path = tmp_path / "a.wav"
    path.touch()
    assert message(path) == f"{path} is an empty file"


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac"])
def test_text_renamed(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text("I am a letter, not a recording.\n" * 50)
    assert message(path) == f"{path} is not a recording in a known format, or is damaged"


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("kept", [0.97, 0.5])
def test_truncated(tmp_path, suffix, kept):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(3.0), RATE)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    text = message(path)
    assert text == f"{path} is cut off or damaged: it holds less audio than its header promises"


def test_wav_from_a_pipe_is_whole(tmp_path):
    path = tmp_path / "a.wav"
    io.write(path, tone(), RATE)
    data = bytearray(path.read_bytes())
    assert data[36:40] == b"data"
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert io.read(path, RATE).shape == (RATE,)


def test_no_samples(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(0, np.float32), RATE)
    assert message(path) == f"{path} holds no audio: it has 0 samples"


def test_all_zero(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((RATE, 2), np.float32), RATE)
    assert message(path) == f"{path} is silent: every sample is zero"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_a_number(tmp_path, bad):
    path = tmp_path / "a.wav"
    x = tone()
    x[[7, 100]] = bad
    soundfile.write(path, x, RATE, subtype="FLOAT")
    assert message(path) == (
        f"{path} holds 2 samples that are not finite numbers (NaN or infinity)"
    )


def test_three_milliseconds_of_reference(tmp_path):
    path = tmp_path / "me.wav"
    io.write(path, tone(0.003), RATE)
    x = io.read(path, RATE)
    with pytest.raises(UserError) as error:
        io.require_seconds(x, RATE, 1.0, str(path))
    assert str(error.value) == f"{path} lasts 0.003 s, at least 1 s is needed"
    io.require_seconds(tone(1.0), RATE, 1.0, "enough")


def test_write_clips(tmp_path):
    path = tmp_path / "a.wav"
    io.write(path, 10 * tone(), RATE)
    back = soundfile.read(path, dtype="int16")[0]
    assert (back.min(), back.max()) == (-32768, 32767)


def test_write_refuses(tmp_path):
    x = tone()
    x[3] = np.nan
    with pytest.raises(UserError, match=r"a\.wav not written: the waveform holds NaN or infinite"):
        io.write(tmp_path / "a.wav", x, RATE)
    with pytest.raises(UserError, match=r"a\.mp3 must end in \.wav or \.flac"):
        io.write(tmp_path / "a.mp3", tone(), RATE)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        io.write(tmp_path / "file" / "a.wav", tone(), RATE)
    assert os.listdir(tmp_path) == ["file"]


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    io.write(path, tone(), RATE)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as error:
        io.write(path, 0.5 * tone(), RATE)
    assert str(error.value) == f"{path} cannot be written: No space left on device"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.wav"]


def test_flac_bytes_round_trip():
    data = io.encode_flac(tone(), RATE)
    assert len(data) < 2 * RATE
    back = io.decode(data)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, tone(), atol=0.5 / 32768 + 1e-7)
    assert io.encode_flac(back, RATE) == data
    with pytest.raises(UserError, match="a record of 4 bytes is not a recording in a known format"):
        io.decode(b"nope")
