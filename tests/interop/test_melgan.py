"""MelGAN in the layout of descriptinc/melgan-neurips, against modules of PyTorch that saved it."""

from __future__ import annotations

import dataclasses
import os

import jax
import numpy as np
import pytest

from jaxclone.audio.spec import AudioSpec, melgan_22k
from jaxclone.export.bundle import Bundle, load_bundle, save_bundle
from jaxclone.interop import melgan
from jaxclone.models.discriminators import (
    ConvSpec,
    MelGANDiscriminatorConfig,
    make_discriminators,
)
from jaxclone.models.melgan import MelGAN, MelGANConfig
from jaxclone.types import UserError

torch = pytest.importorskip("torch")
published = pytest.importorskip("published_vocoders")

TINY = MelGANConfig(n_mels=8, rates=(8, 4), channels=16, layers=2)
JUDGES = MelGANDiscriminatorConfig(
    scales=2,
    layers=(ConvSpec(4, 15), ConvSpec(8, 21, 2, 1), ConvSpec(16, 21, 2, 2), ConvSpec(16, 5)),
)


def save(folder, weight_norm=True, judges=True):
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    generator = published.randomised(published.MelGAN(TINY))
    if not weight_norm:
        published.without_weight_norm(generator)
    torch.save(generator.state_dict(), folder / "netG.pt")
    pair = [generator]
    if judges:
        pair.append(published.randomised(published.MelGANJudges(JUDGES)))
        torch.save(pair[1].state_dict(), folder / "netD.pt")
    return pair


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("weight_norm", [True, False])
def test_the_same_sound_and_the_same_files_again(tmp_path, weight_norm):
    generator, judges = save(tmp_path / "theirs", weight_norm)
    found = melgan.read(tmp_path / "theirs").bundle
    save_bundle(
        tmp_path / "b", found.models, found.configs, found.audio, card="", origins=found.origins
    )
    bundle = load_bundle(tmp_path / "b")
    assert bundle.configs == {"vocoder": TINY, "discriminators": JUDGES}
    assert bundle.audio == dataclasses.replace(melgan_22k(), hop_length=32, n_mels=8)

    mel = np.random.default_rng(0).normal(size=(2, 11, 8)).astype(np.float32)
    waveform = np.random.default_rng(1).normal(size=(2, 401)).astype(np.float32)
    with torch.no_grad():
        want = generator(torch.tensor(mel).transpose(1, 2))[:, 0].numpy()
        wanted = judges(torch.tensor(waveform)[:, None])
    assert want.std() > 0.01
    got = jax.jit(MelGAN(TINY).apply)({"params": bundle.models["vocoder"]}, mel)
    np.testing.assert_allclose(got, want, atol=1e-5)
    variables = bundle.models["discriminators"]
    for (logits, maps), theirs in zip(
        jax.jit(make_discriminators(JUDGES).apply)(variables, waveform), wanted, strict=True
    ):
        for mine, their in zip([*maps, logits[..., None]], theirs, strict=True):
            np.testing.assert_allclose(mine, their.transpose(1, 2), atol=1e-4)

    melgan.write(bundle, tmp_path / "ours")
    assert sorted(os.listdir(tmp_path / "ours")) == ["netD.pt", "netG.pt"]
    for name in ("netD.pt", "netG.pt"):
        here, there = (load(tmp_path / folder / name) for folder in ("ours", "theirs"))
        assert here.keys() == there.keys()
        for key, tensor in here.items():
            assert tensor.shape == there[key].shape
            assert tensor.numpy().tobytes() == there[key].numpy().tobytes(), key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_precision(tmp_path, dtype):
    (generator,) = save(tmp_path / "m", judges=False)
    torch.save(generator.to(dtype).state_dict(), tmp_path / "m" / "netG.pt")
    params = melgan.read(tmp_path / "m").bundle.models["vocoder"]
    want = load(tmp_path / "m" / "netG.pt")["model.1.bias"].float().numpy()
    np.testing.assert_array_equal(params["first"]["bias"], want)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_a_generator_alone(tmp_path):
    save(tmp_path / "m")
    os.rename(tmp_path / "m" / "netG.pt", tmp_path / "m" / "linda_johnson.pt")
    assert set(melgan.read(tmp_path / "m" / "linda_johnson.pt").bundle.models) == {"vocoder"}


def edited(file, spoil):
    def edit(folder):
        found = load(folder / file)
        spoil(found)
        torch.save(found, folder / file)

    return edit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            edited("netG.pt", lambda g: g.pop("model.1.bias")),
            r"lacks .* generator\.model\.1\.bias$",
        ),
        (
            edited("netG.pt", lambda g: g.pop("model.5.block.4.weight_g")),
            r"lacks the tensor generator\.model\.5\.block\.4\.weight_g$",
        ),
        (
            edited("netG.pt", lambda g: g.update(x=torch.zeros(1))),
            r"has the tensor generator\.x, for which there is no place$",
        ),
        (
            edited("netG.pt", lambda g: g.update({"model.3.weight_v": torch.ones(16, 8, 10)})),
            r"its rates are \(5, 4\); even ones can be imported$",
        ),
        (edited("netG.pt", lambda g: g.clear()), r"netG\.pt is no generator of MelGAN$"),
        (
            edited("netD.pt", lambda d: d.pop("model.disc_1.model.layer_2.0.weight_v")),
            r"lacks the tensor judges\.model\.disc_1\.model\.layer_2\.0\.weight_v$",
        ),
        (edited("netD.pt", lambda d: d.clear()), r"netD\.pt holds no discriminators of MelGAN$"),
        (lambda folder: (folder / "netG.pt").unlink(), r"netG\.pt does not exist$"),
        (lambda folder: (folder / "netG.pt").write_bytes(b"no"), "is not a PyTorch file of"),
    ],
)
def test_what_cannot_be_read(tmp_path, spoil, message):
    save(tmp_path / "m")
    spoil(tmp_path / "m")
    with pytest.raises(UserError, match=message) as error:
        melgan.read(tmp_path / "m")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "audio", "message"),
    [
        (TINY, AudioSpec(hop_length=32, n_mels=8), r"does not match: log 'ln' \(expected 'log10'"),
        (MelGANConfig(rates=(8, 5)), melgan_22k(), r"of even rates, not of \(8, 5\)$"),
        (MelGANConfig.multiband(), melgan_22k(), "no place for a MelGAN of several bands$"),
    ],
)
def test_what_the_layout_cannot_say(tmp_path, config, audio, message):
    with pytest.raises(UserError, match=message):
        melgan.write(Bundle({"vocoder": {}}, {"vocoder": config}, audio), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_published_sizes(tmp_path):
    sizes = MelGANConfig.published(), MelGANDiscriminatorConfig.published()
    torch.save(published.MelGAN(sizes[0]).state_dict(), tmp_path / "netG.pt")
    torch.save(published.MelGANJudges(sizes[1]).state_dict(), tmp_path / "netD.pt")
    bundle = melgan.read(tmp_path).bundle
    assert bundle.configs == {"vocoder": sizes[0], "discriminators": sizes[1]}
    assert bundle.audio == melgan_22k()
