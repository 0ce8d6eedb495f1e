"""SpeechT5's HiFi-GAN: folders of transformers and ours give the same sound and the same files."""

from __future__ import annotations

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxclone.audio.spec import AudioSpec, speecht5_16k
from jaxclone.audio.spectral import log_mel
from jaxclone.export.bundle import load_bundle, save_bundle
from jaxclone.interop import huggingface
from jaxclone.models.hifigan import Generator, HiFiGANConfig
from jaxclone.tree import flatten
from jaxclone.types import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BANDS = 8


def make(normalize=True, **changes):
    torch.manual_seed(0)
    config = transformers.SpeechT5HifiGanConfig(
        **{
            "model_in_dim": BANDS,
            "upsample_initial_channel": 16,
            "upsample_rates": [16, 16],
            "upsample_kernel_sizes": [32, 32],
            "resblock_kernel_sizes": [3, 7],
            "resblock_dilation_sizes": [[1, 3], [1, 3]],
            "normalize_before": normalize,
            **changes,
        }
    )
    model = transformers.SpeechT5HifiGan(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        if normalize:
            model.mean += torch.randn(BANDS) - 3
            model.scale *= torch.rand(BANDS) + 0.5
    return model


@pytest.fixture
def folder(tmp_path):
    make().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def through_a_bundle(path, tmp_path):
    bundle = huggingface.read(path).bundle
    save_bundle(
        tmp_path / "b", bundle.models, bundle.configs, bundle.audio, card="", origins=bundle.origins
    )
    return load_bundle(tmp_path / "b")


@pytest.mark.parametrize("normalize", [True, False])
def test_the_same_waveform_and_the_same_files_again(tmp_path, normalize):
    """To the very edges: what is padded with zeros is the mel after its normalisation."""
    model = make(normalize)
    model.save_pretrained(tmp_path / "theirs")
    bundle = through_a_bundle(tmp_path / "theirs", tmp_path)
    config = bundle.configs["vocoder"]
    assert bundle.audio == dataclasses.replace(speecht5_16k(), n_mels=BANDS)
    assert config.normalize_input == normalize
    mel = np.random.default_rng(0).normal(size=(2, 9, BANDS)).astype(np.float32) - 3
    with torch.no_grad():
        want = model(torch.tensor(mel)).numpy()
    assert want.std() > 0.005
    got = jax.jit(Generator(config).apply)({"params": bundle.models["vocoder"]}, mel)
    np.testing.assert_allclose(got, want, atol=1e-5)

    huggingface.write(bundle, tmp_path / "ours")
    assert sorted(os.listdir(tmp_path / "ours")) == ["config.json", "model.safetensors"]
    here, there = (load_file(tmp_path / n / "model.safetensors") for n in ("ours", "theirs"))
    assert here.keys() == there.keys()
    for name, array in here.items():
        assert array.shape == there[name].shape
        assert array.tobytes() == there[name].tobytes(), name
    again, report = transformers.SpeechT5HifiGan.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    named = {"_name_or_path": ""}
    assert again.config.to_dict() | named == model.config.to_dict() | named


def test_normalisation_is_never_trained_and_sees_no_padding(folder):
    bundle = huggingface.read(folder).bundle
    generator = Generator(bundle.configs["vocoder"])
    mel = np.random.default_rng(0).normal(size=(1, 6, BANDS)).astype(np.float32)

    def loss(params):
        return (generator.apply({"params": params}, mel) ** 2).sum()

    for name, slope in flatten(jax.jit(jax.grad(loss))(bundle.models["vocoder"])).items():
        assert np.any(slope) != name.startswith("normalize/"), name
    padded = np.pad(mel, ((0, 0), (0, 3), (0, 0)), constant_values=5.0)
    apply = jax.jit(generator.apply)
    variables = {"params": bundle.models["vocoder"]}
    long = apply(variables, padded, np.array([6], np.int32))
    alone = apply(variables, mel)
    np.testing.assert_allclose(long[:, : alone.shape[1]], alone, atol=1e-5)
    assert not np.any(long[:, alone.shape[1] :])


def test_the_mels_are_those_of_its_feature_extractor():
    extractor = transformers.SpeechT5FeatureExtractor()
    samples = 16_000 + 100
    time = np.arange(samples) / 16_000
    chirp = 0.5 * np.sin(2 * np.pi * (100 + 3000 * time) * time)
    waveform = chirp + 0.01 * np.random.default_rng(0).normal(size=samples)
    waveform = waveform.astype(np.float32)
    want = extractor(audio_target=waveform, sampling_rate=16_000).input_values[0]
    got = log_mel(waveform, speecht5_16k())
    assert len(want) == len(got) + 1 == 63  # ours ends with the last whole hop
    np.testing.assert_allclose(got, want[:-1], atol=1e-4)


def test_a_feature_extractor_in_the_folder(folder):
    settings = {"num_mel_bins": BANDS, "fmin": 50, "fmax": 7000, "win_length": 32}
    transformers.SpeechT5FeatureExtractor(**settings).save_pretrained(folder)
    audio = huggingface.read(folder).bundle.audio
    assert (audio.fmin, audio.fmax, audio.win_length, audio.n_fft) == (50, 7000, 512, 512)


def test_a_vocoder_of_other_mels(tmp_path):
    """A folder of transformers has no word for most conventions: ours is written into it."""
    tiny = dataclasses.replace(HiFiGANConfig.tiny(), upsample_kernels=(11, 8))
    audio = AudioSpec(n_fft=64, hop_length=20, win_length=64, n_mels=8)
    params = Generator(tiny).init(jax.random.key(0), np.zeros((1, 4, 8), np.float32))["params"]
    save_bundle(tmp_path / "b", {"vocoder": params}, {"vocoder": tiny}, audio, card="")
    bundle = load_bundle(tmp_path / "b")
    huggingface.write(bundle, tmp_path / "out")
    again = huggingface.read(tmp_path / "out").bundle
    assert (again.audio, again.configs) == (audio, {"vocoder": tiny})

    mel = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)
    model = transformers.SpeechT5HifiGan.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        want = model(torch.tensor(mel)).numpy()
    got = jax.jit(Generator(tiny).apply)({"params": bundle.models["vocoder"]}, mel)
    np.testing.assert_allclose(got, want, atol=1e-5)

    small = dataclasses.replace(bundle, configs={"vocoder": dataclasses.replace(tiny, resblock=2)})
    with pytest.raises(UserError, match="no class for this HiFi-GAN: its resblock is 2"):
        huggingface.write(small, tmp_path / "small")


def tensors(spoil):
    def edit(folder):
        found = load_file(folder / "model.safetensors")
        spoil(found)
        save_file(found, folder / "model.safetensors")

    return edit


def configured(**changes):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (tensors(lambda t: t.pop("mean")), "lacks the tensor mean$"),
        (tensors(lambda t: t.update(scale=np.zeros(BANDS, "f"))), "the scale, which holds a 0$"),
        (tensors(lambda t: t.pop("conv_post.bias")), r"lacks the tensor conv_post\.bias$"),
        (tensors(lambda t: t.update(x=np.zeros(1, "f"))), "has the tensor x, for which"),
        (configured(leaky_relu_slope=0.2), "leaky_relu_slope is 0.2; models with 0.1"),
        (configured(upsample_rates=[16, 8]), "16 x 8 = 128 samples a frame, .* 256$"),
        (configured(sampling_rate="16k"), 'sampling_rate: "16k" is not of type int'),
        (configured(model_in_dim=9), r"has the shape \[.*8.*\], the configuration asks for .*9"),
        (configured(jaxclone_audio={"n": 1}), "is not the type of a configuration$"),
    ],
)
def test_what_cannot_be_read(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        huggingface.read(folder)
    assert "\n" not in str(error.value)
