"""DiffWave in the layout of lmnt-com/diffwave, against modules of PyTorch that saved it."""

from __future__ import annotations

import dataclasses
import os

import jax
import numpy as np
import pytest

from jaxclone.audio.spec import diffwave_22k
from jaxclone.audio.spectral import log_mel
from jaxclone.export.bundle import Bundle, load_bundle, save_bundle
from jaxclone.interop import diffwave
from jaxclone.models.diffwave import DiffWave, DiffWaveConfig
from jaxclone.types import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
published = pytest.importorskip("published_vocoders")

SETTINGS = {
    "batch_size": 16,
    "max_grad_norm": None,
    "sample_rate": 22_050,
    "n_mels": 6,
    "n_fft": 256,
    "hop_samples": 64,
    "residual_layers": 4,
    "residual_channels": 8,
    "dilation_cycle_length": 3,
    "unconditional": False,
    "noise_schedule": np.linspace(1e-4, 0.05, 50).tolist(),
    "inference_noise_schedule": [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5],
    "audio_len": 110_250,
}


def make():
    torch.manual_seed(0)
    return published.randomised(published.DiffWave(6, 8, 4, 3, 50, rates=(16, 4)))


def save(folder):
    folder.mkdir(exist_ok=True)
    model = make()
    parts = {
        "step": 1_000_578,
        "model": model.state_dict(),
        "optimizer": {"state": {}, "param_groups": []},
        "params": SETTINGS,
        "scaler": {},
    }
    torch.save(parts, folder / "weights.pt")
    return model


def test_the_same_noise_and_the_same_file_again(tmp_path):
    model = save(tmp_path / "theirs")
    found = diffwave.read(tmp_path / "theirs")
    assert found.left_out == ("optimizer", "scaler")
    save_bundle(
        tmp_path / "b",
        found.bundle.models,
        found.bundle.configs,
        found.bundle.audio,
        card="",
        origins=found.bundle.origins,
    )
    bundle = load_bundle(tmp_path / "b")
    config = bundle.configs["vocoder"]
    assert (config.upsample_rates, config.channels, config.layers) == ((16, 4), 8, 4)

    rng = np.random.default_rng(0)
    noisy = rng.normal(size=(2, 7 * 64)).astype(np.float32)
    # They normalise outside of the network what ours does inside.
    normal = rng.random((2, 7, 6)).astype(np.float32)
    mel = (normal - config.mel_shift) / config.mel_scale
    with torch.no_grad():
        want = model(
            torch.tensor(noisy), torch.tensor([3, 41]), torch.tensor(normal).transpose(1, 2)
        )
    assert want.std() > 0.005
    got = jax.jit(DiffWave(config).apply, static_argnames="method")(
        {"params": bundle.models["vocoder"]},
        noisy,
        np.array([3.0, 41.0], np.float32),
        mel.astype(np.float32),
        method="tell_noise",
    )
    np.testing.assert_allclose(got, want[:, 0], atol=1e-4)

    diffwave.write(bundle, tmp_path / "ours")
    here, there = (
        torch.load(tmp_path / folder / "weights.pt", weights_only=True)
        for folder in ("ours", "theirs")
    )
    assert here["model"].keys() == there["model"].keys()
    for name, tensor in here["model"].items():
        assert tensor.shape == there["model"][name].shape
        assert tensor.numpy().tobytes() == there["model"][name].numpy().tobytes(), name
    assert here["params"] == SETTINGS
    assert here["step"] == there["step"]


def test_a_network_that_does_not_know_its_steps_tells_none(tmp_path):
    save(tmp_path / "theirs")
    bundle = dataclasses.replace(diffwave.read(tmp_path / "theirs").bundle, origins={})
    diffwave.write(bundle, tmp_path / "ours")
    assert torch.load(tmp_path / "ours/weights.pt", weights_only=True).keys() == {"model", "params"}


def test_the_mels_are_those_of_its_preprocessing():
    """torchaudio's steps, done by transformers: HTK filters, centred, over the window's energy."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    audio = diffwave_22k()
    time = np.arange(22_050) / 22_050
    waveform = 0.9 * np.sin(2 * np.pi * (100 + 4000 * time) * time)
    waveform += 0.01 * np.random.default_rng(0).normal(size=len(time))
    window = window_function(1024, "hann_window")
    filters = mel_filter_bank(513, 80, 20.0, 11_025.0, 22_050, norm=None, mel_scale="htk")
    mel = spectrogram(waveform, window, 1024, 256, 1024, power=1.0, mel_filters=filters).T
    mel /= np.sqrt((window**2).sum())
    want = np.clip((20 * np.log10(np.maximum(mel, 1e-5)) - 20 + 100) / 100, 0, 1)
    assert want.max() == 1
    affine = diffwave._affine(audio)
    got = affine["mel_scale"] * log_mel(waveform.astype(np.float32), audio) + affine["mel_shift"]
    np.testing.assert_allclose(got, want[: len(got)], atol=1e-4)


def edited(spoil):
    def edit(folder):
        found = torch.load(folder / "weights.pt", weights_only=True)
        spoil(found)
        torch.save(found, folder / "weights.pt")

    return edit


def configured(**changes):
    return edited(lambda found: found["params"].update(changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            edited(lambda f: f["model"].pop("skip_projection.bias")),
            r"lacks .* skip_projection\.bias$",
        ),
        (
            edited(lambda f: f["model"].pop("residual_layers.2.dilated_conv.weight")),
            r"lacks the tensor residual_layers\.2\.dilated_conv\.weight$",
        ),
        (edited(lambda f: f["model"].update(x=torch.zeros(1))), "has the tensor x, for which"),
        (edited(lambda f: f.pop("params")), "is no checkpoint of DiffWave: it has no 'params'$"),
        (configured(unconditional=True), "unconditional is True; models with False"),
        (configured(hop_samples=32), "16 x 4 = 64 samples a frame, .* hop_length 32$"),
        (configured(residual_layers=3), "residual_layers is 3, by the tensors it is 4$"),
        (
            configured(residual_layers=10**9),
            "residual_layers is 1000000000, by the tensors it is 4",
        ),
        (configured(residual_layers=None), "residual_layers is None, by the tensors it is 4$"),
        (configured(residual_channels=10**12), "residual_channels is 10+, by the tensors it is 8$"),
        (configured(n_mels=10**12), "n_mels is 10+, by the tensors it is 6$"),
        (
            edited(
                lambda f: (
                    f["model"].update({"residual_layers.999999999.x": torch.zeros(1)}),
                    f["params"].update(residual_layers=10**9),
                )
            ),
            "residual_layers is 1000000000, by the tensors it is 5$",
        ),
        (configured(hop_samples=10**9), "hop_length <= win_length <= n_fft, got 1000000000"),
        (configured(noise_schedule=[0.1, 0.3, 0.4]), "noise_schedule does not rise linearly$"),
        (configured(noise_schedule="linear"), "noise_schedule is no list of numbers$"),
        (configured(sample_rate="22k"), 'sample_rate: "22k" is not of type int'),
        (lambda folder: os.unlink(folder / "weights.pt"), r"weights\.pt does not exist$"),
    ],
)
def test_what_cannot_be_read(tmp_path, spoil, message):
    save(tmp_path / "m")
    spoil(tmp_path / "m")
    with pytest.raises(UserError, match=message) as error:
        diffwave.read(tmp_path / "m")
    assert "\n" not in str(error.value)


def test_older_files_hold_the_table_of_steps(tmp_path):
    save(tmp_path / "m")
    table = {"diffusion_embedding.embedding": torch.zeros(50, 128)}
    edited(lambda found: found["model"].update(table))(tmp_path / "m")
    left_out = diffwave.read(tmp_path / "m").left_out
    assert left_out == ("diffusion_embedding.embedding", "optimizer", "scaler")


def test_mels_that_the_layout_cannot_say(tmp_path):
    audio = dataclasses.replace(diffwave_22k(), fmin=0.0)
    bundle = Bundle({"vocoder": {}}, {"vocoder": DiffWaveConfig.base()}, audio)
    with pytest.raises(UserError, match=r"does not match: fmin 0\.0 \(expected 20\.0\)$"):
        diffwave.write(bundle, tmp_path / "out")
    bundle = dataclasses.replace(bundle, audio=diffwave_22k())
    with pytest.raises(UserError, match=r"of networks with .*mel_scale"):
        diffwave.write(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()
