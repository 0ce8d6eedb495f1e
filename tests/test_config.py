from __future__ import annotations

import dataclasses
import json

import pytest

from data_pipelines.loader import CropConfig, EpisodeConfig
from jaxclone import config as configs
from jaxclone.audio.spec import AudioSpec
from jaxclone.config import UsageError
from jaxclone.models.diffwave import DiffWaveConfig
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2PretrainingConfig
from jaxclone.train.task import RunConfig, TrackingConfig
from jaxclone.types import UserError

AUDIO = "jaxclone.audio.spec.AudioSpec"
ENCODER = "jaxclone.models.wav2vec2.Wav2Vec2Config"
RUN = "jaxclone.train.task.RunConfig"


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Every kind of field that a config may have."""

    flag: bool = True
    count: int = -3
    rate: float = 1e-05
    whole: float = 2
    text: str = 'é\n"'
    maybe: float | None = None
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[str, float] = ("a", 0.1)
    nested: tuple[tuple[int, int], ...] = ((1, 2), (3, 4))
    parts: tuple[AudioSpec, ...] = (AudioSpec(), AudioSpec(fmax=7000.0))
    data: CropConfig | EpisodeConfig = EpisodeConfig()
    empty: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Needs:
    """A field without a default."""

    count: int


HERE = __name__.split(".")[0]


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(
            data=CropConfig(buckets=(2.0, 4.5)),
            valid=EpisodeConfig(corpus="c"),
            audio=AudioSpec(fmax=7600.0, log="log10"),
            init_from=("a", "b"),
            tracking=TrackingConfig(wandb="offline"),
        ),
    ],
)
def test_json_round_trip_is_exact(config):
    assert configs.from_json(configs.to_json(config)) == config


def test_json_round_trip_of_every_kind_of_field():
    back = configs.from_json(configs.to_json(Shapes()), packages=(*configs.PACKAGES, HERE))
    assert back == Shapes()
    assert type(back.whole) is int
    assert type(back.nested[0]) is tuple


def test_json_of_an_older_version_takes_defaults():
    assert configs.from_json(json.dumps({"_type": AUDIO, "n_mels": 40})) == AudioSpec(n_mels=40)


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, object(), b"x"])
def test_json_refuses_what_is_no_part_of_a_config(value):
    with pytest.raises(TypeError, match=r"Shapes\.text"):
        configs.to_json(dataclasses.replace(Shapes(), text=value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be a JSON object"),
        ("9" * 5000, "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"_type": "os.system"}', "'os.system' is not the type of a configuration"),
        ('{"_type": "pathlib.Path"}', "not the type"),
        ('{"_type": "jaxclonefake.x.Y"}', "not the type"),
        ('{"_type": "jaxclone.config.Path"}', "not the type"),
        ('{"_type": "jaxclone.config.load"}', "not the type"),
        ('{"_type": "jaxclone..spec.AudioSpec"}', "not the type"),
        ('{"_type": ["jaxclone"]}', "not the type"),
        ('{"_type": null}', "not the type"),
        ("{}", "not the type"),
        ({"_type": AUDIO, "n_mel": 1}, "unknown field 'n_mel'; did you mean 'n_mels'?"),
        ({"_type": AUDIO, "n_mels": "8"}, 'config.n_mels: "8" is not of type int'),
        ({"_type": AUDIO, "n_mels": True}, "config.n_mels: true is not of type int"),
        ({"_type": AUDIO, "n_mels": None}, "config.n_mels: null is not of type int"),
        ({"_type": AUDIO, "log": "log2"}, "config.log"),
        ({"_type": AUDIO, "n_mels": [80]}, "config.n_mels"),
        ({"_type": AUDIO, "hop_length": 4096}, "hop_length <= win_length"),
        ({"_type": ENCODER, "heads": 0}, "heads must be above 0, got 0"),
        ({"_type": RUN, "data": {"_type": AUDIO}}, "config.data"),
        ({"_type": RUN, "data": {"_type": "os.system"}}, "config.data: 'os.system'"),
        ({"_type": RUN, "audio": {"_type": AUDIO, "x": 1}}, "config.audio: unknown field 'x'"),
        ({"_type": RUN, "init_from": ["a", 1]}, "config.init_from"),
    ],
)
def test_hostile_json_is_refused_in_one_line(text, message):
    with pytest.raises(UserError) as failure:
        configs.from_json(text if isinstance(text, str) else json.dumps(text))
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_json_that_lacks_a_needed_field():
    with pytest.raises(UserError, match="field 'count' is missing"):
        configs.from_json(json.dumps({"_type": f"{__name__}.Needs"}), packages=(HERE,))


def test_difference():
    run = RunConfig(audio=AudioSpec(n_mels=40), steps=5)
    assert configs.difference(run, run) == []
    assert configs.difference(RunConfig(), run) == ["audio.n_mels", "steps"]
    assert configs.difference(RunConfig(), RunConfig(valid=CropConfig())) == ["valid"]
    assert configs.difference(CropConfig(), EpisodeConfig()) == ["_type"]


# Overrides.


def test_overrides_are_typed_by_their_field():
    config = configs.override(
        RunConfig(data=CropConfig(corpus="a"), valid=EpisodeConfig()),
        [
            *("--data.corpus", "b", "--data.buckets", "1", "2.5", "--data.f0", "True"),
            *("--valid.support", "2", "--audio.fmax", "7000", "--seed=3"),
            *("--init_from", "x", "y", "--tracking.wandb", "offline", "--log-every", "7"),
        ],
    )
    assert config == RunConfig(
        data=CropConfig(corpus="b", buckets=(1.0, 2.5), f0=True),
        valid=EpisodeConfig(support=2),
        audio=AudioSpec(fmax=7000.0),
        seed=3,
        init_from=("x", "y"),
        tracking=TrackingConfig(wandb="offline"),
        log_every=7,
    )


def test_an_override_can_empty_a_tuple_and_unset_an_option():
    config = RunConfig(init_from=("a",), audio=AudioSpec(fmax=7000.0))
    config = configs.override(config, ["--init_from", "--audio.fmax", "None"])
    assert config.init_from == ()
    assert config.audio.fmax is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.corpsu", "x"], "unknown option --data.corpsu; did you mean '--data.corpus'?"),
        (["--sed=1"], "unknown option --sed; did you mean '--seed'?"),
        (["--data.support", "1"], "unknown option --data.support"),
        (["--valid.corpus", "x"], "unknown option --valid.corpus; did you mean"),
        (["stray"], "unexpected argument 'stray'; see jaxclone train x --help"),
        (["--steps", "many"], "--steps: invalid literal for int() with base 10: 'many'"),
        (["--steps", "1.5"], "--steps: invalid literal for int()"),
        (["--steps", "-5"], "steps must be 0 or more, got -5"),
        (["--keep", "0"], "keep must be above 0, got 0"),
        (["--eval_batches", "0"], "eval_batches must be above 0, got 0"),
        (["--steps"], "Missing value for argument '--steps'"),
        (["--precision", "f64"], "invalid choice 'f64' for argument '--precision'"),
        (["--data.buckets", "1", "x"], "--data.buckets"),
        (["--audio.fmax", "high"], "--audio.fmax"),
        (["--audio.hop_length", "4096"], "hop_length <= win_length"),
    ],
)
def test_bad_overrides_are_told_in_one_line(args, message):
    with pytest.raises(UsageError) as failure:
        configs.override(RunConfig(), args, prog="jaxclone train x")
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)
    assert "│" not in str(failure.value)


def test_help_lists_fields_with_their_description(capsys):
    with pytest.raises(SystemExit) as stop:
        configs.override(RunConfig(), ["--help"], prog="jaxclone train x")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--data.batch_size INT" in text
    assert "examples a step, over all hosts" in text


# Files.


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.py"
        path.write_text(text)
        return str(path)

    return write


def test_loads_a_file(write):
    path = write(
        "from jaxclone.train.task import RunConfig\n"
        "def get_config():\n    return RunConfig(seed=5)\n"
    )
    assert configs.load(path) == RunConfig(seed=5)


VARIANTS = """
from typing import Literal
from jaxclone.train.task import RunConfig

def get_config(size: Literal["full", "smoke"] = "full"):
    return RunConfig(steps=2 if size == "smoke" else 1000)
"""


def test_a_colon_chooses_a_variant(write):
    path = write(VARIANTS)
    assert configs.load(path).steps == 1000
    assert configs.load(f"{path}:smoke").steps == 2
    with pytest.raises(UserError, match="no variant 'smok'; did you mean 'smoke'"):
        configs.load(f"{path}:smok")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "has no function get_config"),
        ("def get_config():\n    return {}\n", "returned dict, not a dataclass"),
        ("def get_config(:\n", "line 1: invalid syntax"),
        ("import nosuchmodule\n", "line 1: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_is_no_config(write, text, message):
    with pytest.raises(UserError, match=message):
        configs.load(write(text))


def test_a_variant_of_a_config_without_variants(write):
    path = write("def get_config():\n    return 1\n")
    with pytest.raises(UserError, match="no variant 'smoke'"):
        configs.load(f"{path}:smoke")


@pytest.fixture
def named(tmp_path, monkeypatch):
    """A folder of named configurations where pip would put it."""
    folder = tmp_path / "share" / "jaxclone" / "configs" / "somewhere"
    folder.mkdir(parents=True)
    (folder / "special.py").write_text(VARIANTS)
    (folder / "_shared.py").write_text("")
    monkeypatch.setattr("sys.prefix", str(tmp_path))


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("name", ["somewhere/special", "somewhere/special.py"])
def test_loads_by_name(name):
    assert "somewhere/special" in configs.names()
    assert "somewhere/_shared" not in configs.names()
    assert configs.load(name).steps == 1000
    assert configs.load(f"{name}:smoke").steps == 2


@pytest.mark.usefixtures("named")
def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UserError, match="'somewhere/specal'; did you mean 'somewhere/special'"):
        configs.load("somewhere/specal")


def test_models_do_not_differ_by_how_they_are_trained():
    ours = Wav2Vec2Config.mini()
    theirs = dataclasses.replace(ours, remat="full", dropout=0.3)
    assert configs.difference(ours, theirs) == ["dropout", "remat"]
    assert configs.difference(ours, theirs, as_models=True) == []
    for kind in (Wav2Vec2Config, Wav2Vec2PretrainingConfig, DiffWaveConfig):
        assert {field.name for field in dataclasses.fields(kind)} > kind.HOW
