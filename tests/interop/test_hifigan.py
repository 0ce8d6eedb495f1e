"""HiFi-GAN in the layout of jik876/hifi-gan, against modules of PyTorch that saved it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest

from jaxclone import config as configs
from jaxclone import rng
from jaxclone.audio.spec import AudioSpec, hifigan_22k
from jaxclone.cli.train import pretrained_models
from jaxclone.export.bundle import Bundle, load_bundle, save_bundle
from jaxclone.interop import hifigan
from jaxclone.models.discriminators import ConvSpec, DiscriminatorConfig, Discriminators
from jaxclone.models.hifigan import Generator, HiFiGANConfig
from jaxclone.models.vocos import VocosConfig
from jaxclone.nn.weight_norm import SPECTRAL
from jaxclone.train.vocoder import VocoderConfig
from jaxclone.tree import flatten, n_parameters
from jaxclone.types import UserError

torch = pytest.importorskip("torch")
published = pytest.importorskip("published_vocoders")

AUDIO = AudioSpec(22_050, n_fft=64, hop_length=20, win_length=64, n_mels=8, fmax=8000.0)
TINY = dataclasses.replace(
    HiFiGANConfig.tiny(),
    upsample_kernels=(11, 8),
    resblock_kernels=(3, 7),
    resblock_dilations=((1, 3), (2, 4)),
)
JUDGES = DiscriminatorConfig(
    periods=(2, 3),
    period_channels=(4, 8, 6),
    scales=3,
    scale_layers=(ConvSpec(4, 15), ConvSpec(8, 41, 2, 4), ConvSpec(6, 5)),
)


def make(config=TINY, seed=0):
    torch.manual_seed(seed)
    return published.randomised(published.HiFiGAN(config))


def make_judges(config=JUDGES):
    torch.manual_seed(0)
    by_period, by_scale = published.ByPeriod(config), published.ByScale(config)
    published.randomised(by_scale)
    return published.randomised(by_period), published.converged(by_scale)


def save(folder, config=TINY, judges=(), **options):
    folder.mkdir(exist_ok=True)
    generator = make(config)
    if not options.pop("weight_norm", True):
        published.without_weight_norm(generator)
    settings = published.hifigan_settings(config, AUDIO)
    published.save_hifigan(folder, settings, generator, judges, **options)
    return generator


def through_a_bundle(found, folder):
    bundle = found.bundle
    save_bundle(
        folder, bundle.models, bundle.configs, bundle.audio, card="", origins=bundle.origins
    )
    return load_bundle(folder)


def load(path):
    return torch.load(path, weights_only=True)


def assert_same_tensors(here, there):
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        assert tensor.dtype == there[name].dtype
        assert tensor.shape == there[name].shape
        assert tensor.numpy().tobytes() == there[name].numpy().tobytes(), name


@pytest.mark.parametrize("weight_norm", [True, False])
@pytest.mark.parametrize("resblock", [1, 2])
def test_the_same_waveform_and_the_same_file_again(tmp_path, resblock, weight_norm):
    config = dataclasses.replace(TINY, resblock=resblock)
    model = save(tmp_path / "theirs", config, weight_norm=weight_norm)
    bundle = through_a_bundle(hifigan.read(tmp_path / "theirs"), tmp_path / "bundle")
    assert (bundle.configs, bundle.audio) == ({"vocoder": config}, AUDIO)
    mel = np.random.default_rng(0).normal(size=(2, 23, 8)).astype(np.float32)
    with torch.no_grad():
        want = model(torch.tensor(mel).transpose(1, 2))[:, 0].numpy()
    assert want.std() > 0.005
    got = jax.jit(Generator(config).apply)({"params": bundle.models["vocoder"]}, mel)
    np.testing.assert_allclose(got, want, atol=1e-5)

    hifigan.write(bundle, tmp_path / "ours")
    assert sorted(os.listdir(tmp_path / "ours")) == ["config.json", "g_02500000"]
    here, there = load(tmp_path / "ours" / "g_02500000"), load(tmp_path / "theirs" / "g_02500000")
    assert here.keys() == {"generator"}
    assert_same_tensors(here["generator"], there["generator"])
    here, there = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs")
    )
    assert here == there


def test_discriminators(tmp_path):
    judges = make_judges()
    save(tmp_path / "theirs", judges=judges)
    found = hifigan.read(tmp_path / "theirs", JUDGES)
    assert found.left_out == ("optim_d", "optim_g")
    bundle = through_a_bundle(found, tmp_path / "bundle")
    variables = bundle.models["discriminators"]
    assert set(variables) == {"params", SPECTRAL}

    waveform = np.random.default_rng(1).normal(size=(2, 601)).astype(np.float32)
    ours = jax.jit(Discriminators(JUDGES).apply)(variables, waveform)
    with torch.no_grad():
        want = [maps for judge in judges for maps in judge(torch.tensor(waveform)[:, None])]
    assert len(ours) == len(want) == 5
    for (_, maps), theirs in zip(ours, want):
        assert len(maps) == len(theirs)
        for mine, their in zip(maps, theirs):
            # By period [b, c, time, phase], ours [b, phase, time, c].
            np.testing.assert_allclose(mine, their.transpose(1, -1), atol=1e-4)

    hifigan.write(bundle, tmp_path / "ours")
    here, there = load(tmp_path / "ours" / "do_02500000"), load(tmp_path / "theirs" / "do_02500000")
    assert here.keys() == there.keys() - {"optim_g", "optim_d"}
    assert (here["steps"], here["epoch"]) == (2_500_000, 3100)
    for part in ("mpd", "msd"):
        assert_same_tensors(here[part], there[part])


def test_a_run_starts_from_what_was_imported(tmp_path):
    save(tmp_path / "theirs", judges=make_judges())
    bundle = through_a_bundle(hifigan.read(tmp_path / "theirs", JUDGES), tmp_path / "bundle")
    config = VocoderConfig(
        audio=AUDIO, generator=TINY, discriminators=JUDGES, init_from=(str(tmp_path / "bundle"),)
    )
    task = config.task()
    state = task.init(rng.root(0), pretrained_models(config, task))
    start = jax.tree.map(np.asarray, task.models(state))
    jax.tree.map(np.testing.assert_array_equal, start, bundle.models)

    other = dataclasses.replace(config, audio=dataclasses.replace(AUDIO, fmax=None))
    with pytest.raises(
        UserError,
        match=r"AudioSpec of --init-from \S+ does not match: fmax 8000\.0 \(expected None",
    ):
        pretrained_models(other, other.task())
    other = dataclasses.replace(config, discriminators=dataclasses.replace(JUDGES, period_stride=2))
    with pytest.raises(UserError, match=r"its discriminators is another model.*period_stride"):
        pretrained_models(other, other.task())


def test_a_vocoder_that_was_trained_here(tmp_path):
    """Without an origin: what its config.json does not hold is left to their defaults."""
    save(tmp_path / "theirs", judges=make_judges())
    bundle = hifigan.read(tmp_path / "theirs", JUDGES).bundle
    hifigan.write(dataclasses.replace(bundle, origins={}), tmp_path / "ours")
    assert sorted(os.listdir(tmp_path / "ours")) == ["config.json", "do_00000000", "g_00000000"]
    state = load(tmp_path / "ours" / "g_00000000")["generator"]
    published.HiFiGAN(TINY).load_state_dict(state)
    again = hifigan.read(tmp_path / "ours", JUDGES).bundle
    assert (again.configs, again.audio) == (bundle.configs, bundle.audio)
    jax.tree.map(np.testing.assert_array_equal, again.models, bundle.models)


def test_the_last_of_several_generators_is_taken(tmp_path):
    save(tmp_path / "m", judges=make_judges(), number="00005000")
    save(tmp_path / "m", number="00010000")
    (tmp_path / "m" / "g_old").write_bytes(b"")
    assert set(hifigan.read(tmp_path / "m").bundle.models) == {"vocoder"}
    found = hifigan.read(tmp_path / "m" / "g_00005000", JUDGES)
    assert set(found.bundle.models) == {"vocoder", "discriminators"}


def test_a_generator_without_weight_norm_beside_its_discriminators(tmp_path):
    save(tmp_path / "m", judges=make_judges(), weight_norm=False)
    bundle = hifigan.read(tmp_path / "m", JUDGES).bundle
    hifigan.write(bundle, tmp_path / "ours")
    for file, part in (("g_02500000", "generator"), ("do_02500000", "msd")):
        here, there = (load(tmp_path / folder / file)[part] for folder in ("ours", "m"))
        assert_same_tensors(here, there)


def test_a_generator_of_another_name(tmp_path):
    save(tmp_path / "m", judges=make_judges())
    os.rename(tmp_path / "m" / "g_02500000", tmp_path / "m" / "generator_v1")
    assert set(hifigan.read(tmp_path / "m" / "generator_v1").bundle.models) == {"vocoder"}


def test_a_channel_that_is_silent(tmp_path):
    """Without weight norm a kernel may be zero, which has no direction."""
    model = save(tmp_path / "m", weight_norm=False)
    with torch.no_grad():
        model.conv_pre.weight[2] = 0
    settings = published.hifigan_settings(TINY, AUDIO)
    published.save_hifigan(tmp_path / "m", settings, model)
    bundle = hifigan.read(tmp_path / "m").bundle
    assert all(np.isfinite(leaf).all() for leaf in flatten(bundle.models).values())
    hifigan.write(bundle, tmp_path / "ours")
    state = load(tmp_path / "ours" / "g_02500000")["generator"]
    np.testing.assert_array_equal(state["conv_pre.weight"], model.conv_pre.weight.detach())


def edit(path, spoil):
    found = load(path)
    spoil(found)
    torch.save(found, path)


def generator(spoil):
    return lambda folder: edit(folder / "g_02500000", lambda found: spoil(found["generator"]))


def judges_file(spoil):
    return lambda folder: edit(folder / "do_02500000", spoil)


def configured(**changes):
    def spoil(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder as it should be, to spoil copies of."""
    folder = tmp_path_factory.mktemp("whole")
    save(folder, judges=make_judges())
    return folder


class Shell:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.system, ("touch broken-into",)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (generator(lambda g: g.pop("ups.1.bias")), r"lacks the tensor generator\.ups\.1\.bias$"),
        (
            generator(lambda g: g.pop("resblocks.3.convs2.0.weight_v")),
            r"lacks the tensor generator\.resblocks\.3\.convs2\.0\.weight_v$",
        ),
        (
            generator(lambda g: g.update(more=torch.zeros(1))),
            r"has the tensor generator\.more, for which there is no place$",
        ),
        (
            generator(lambda g: g.update({"conv_post.bias": torch.zeros(2)})),
            r"generator\.conv_post\.bias has the shape \[2\], the configuration asks for \[1\]$",
        ),
        (
            generator(lambda g: g.update({"conv_post.bias": torch.tensor([torch.nan])})),
            r"conv_post\.bias holds values that are not finite$",
        ),
        (
            lambda folder: edit(folder / "g_02500000", lambda found: found.pop("generator")),
            r"g_02500000 is no checkpoint of HiFi-GAN: it has no 'generator'$",
        ),
        (
            lambda folder: torch.save([1], folder / "g_02500000"),
            r"g_02500000 is no checkpoint of HiFi-GAN: it has no 'generator'$",
        ),
        (
            lambda folder: torch.save({"generator": Shell()}, folder / "g_02500000"),
            r"holds a (posix|os)\.system, which only its own program can read",
        ),
        (
            lambda folder: (folder / "g_02500000").write_bytes(b"PK\3\4 and no more"),
            "is not a PyTorch file of weights, or is damaged$",
        ),
        (lambda folder: os.unlink(folder / "g_02500000"), "holds no generator: no file is called"),
        (lambda folder: os.unlink(folder / "config.json"), r"config\.json does not exist$"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            r"config\.json cannot be read",
        ),
        (judges_file(lambda d: d.pop("msd")), "do_02500000 is no checkpoint .* no 'msd'$"),
        (
            judges_file(lambda d: d["msd"].pop("discriminators.0.convs.1.weight_u")),
            r"lacks the tensor msd\.discriminators\.0\.convs\.1\.weight_u$",
        ),
        (
            judges_file(lambda d: d["mpd"].update({"discriminators.5.conv_post.bias": 1})),
            "do_02500000 holds no table of tensors$",
        ),
        (configured(resblock="3"), r"resblock is '3'; 1, 2 can be imported$"),
        (configured(upsample_rates=[5, 6]), r"5 x 6 = 30 samples a frame, .*hop_length 20$"),
        (configured(upsample_kernel_sizes=[10, 8]), "an upsampling by 5 with 10 taps is another"),
        (configured(upsample_rates=None), "upsample_rates: null is not of type"),
        (configured(num_mels="8"), 'n_mels: "8" is not of type int'),
        (configured(hop_size=0), "AudioSpec needs 0 < hop_length"),
        (configured(sampling_rate=8000), r"AudioSpec needs fmin < fmax <= sample_rate / 2"),
        (configured(resblock_dilation_sizes=[[1, 3]]), "needs dilations for each resblock kernel"),
        (configured(resblock="2"), r"lacks the tensor generator\.resblocks\.0\.convs\.0\."),
        (
            configured(upsample_initial_channel=32),
            r"has the shape \[\d+.*, the configuration asks for \[",
        ),
    ],
)
def test_what_cannot_be_read(whole, tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "m")
    spoil(tmp_path / "m")
    with pytest.raises(UserError, match=message) as error:
        hifigan.read(tmp_path / "m", JUDGES)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "broken-into").exists()


def test_a_place_where_nothing_is(tmp_path):
    with pytest.raises(UserError, match=r"none/g_00000001 does not exist$"):
        hifigan.read(tmp_path / "none" / "g_00000001")


VOCODER = Bundle({"vocoder": {}}, {"vocoder": TINY}, AUDIO)


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        (Bundle({"encoder": {}}, {}, AUDIO), "no vocoder in the bundle, which holds encoder$"),
        (
            dataclasses.replace(VOCODER, configs={"vocoder": VocosConfig()}),
            "this format is of HiFiGAN; the vocoder is a VocosConfig$",
        ),
        (
            dataclasses.replace(
                VOCODER, configs={"vocoder": dataclasses.replace(TINY, normalize_input=True)}
            ),
            "normalises its mels, which the layout cannot say: use hf$",
        ),
        (
            dataclasses.replace(VOCODER, configs={"vocoder": HiFiGANConfig.tiny()}),
            "an upsampling by 5 with 10 taps is another one in PyTorch",
        ),
        (
            dataclasses.replace(VOCODER, audio=dataclasses.replace(AUDIO, log="log10")),
            r"AudioSpec of a vocoder for this layout does not match: log 'log10' \(expected 'ln'",
        ),
    ],
)
def test_what_the_layout_cannot_say(tmp_path, bundle, message):
    with pytest.raises(UserError, match=message):
        hifigan.write(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_published_sizes(tmp_path, version):
    """A bundle of theirs starts our run of the published configuration as it is."""
    config = getattr(HiFiGANConfig, version)()
    sizes = DiscriminatorConfig.published()
    judges = (published.ByPeriod(sizes), published.ByScale(sizes)) if version == "v1" else ()
    settings = published.hifigan_settings(config, hifigan_22k())
    generator = published.HiFiGAN(config)
    published.save_hifigan(tmp_path, settings, generator, judges)
    bundle = hifigan.read(tmp_path).bundle
    assert bundle.configs["vocoder"] == config
    assert bundle.audio == hifigan_22k()
    if version != "v1":
        return
    n = sum(parameter.numel() for parameter in generator.parameters())
    assert n_parameters(bundle.models["vocoder"]) == n == pytest.approx(13.93e6, rel=1e-3)
    save_bundle(tmp_path / "bundle", bundle.models, bundle.configs, bundle.audio, card="")
    run = configs.load("vocoder/hifigan_v1")
    run = dataclasses.replace(run, init_from=(str(tmp_path / "bundle"),))
    assert set(pretrained_models(run, run.task())) == {"vocoder", "discriminators"}
