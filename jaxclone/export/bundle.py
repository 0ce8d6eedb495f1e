"""Bundles: a folder that holds trained models, what they are, and what to know before using them.

model.safetensors   parameters, named model/path/of/the/parameter
config.json         the models' configurations, AudioSpec, versions
README.md           the model card
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax.core import meta
from flax.errors import FlaxError

from jaxclone import __version__, rng
from jaxclone.adapt.enroll import AdaptConfig
from jaxclone.audio.spec import AudioSpec
from jaxclone.config import from_data, to_data
from jaxclone.files import whole_folder
from jaxclone.models.converter import ConverterConfig
from jaxclone.models.discriminators import DiscriminatorsConfig, make_discriminators
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.vocoder import AnyGeneratorConfig, make_generator
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.models.wav2vec2 import (
    Wav2Vec2Config,
    Wav2Vec2Encoder,
    Wav2Vec2Pretraining,
    Wav2Vec2PretrainingConfig,
)
from jaxclone.nn.masking import MaskedFrames
from jaxclone.tensors import load_tensors, save_tensors
from jaxclone.tree import fingerprint as fingerprint
from jaxclone.tree import flatten
from jaxclone.types import Tree, UserError

# The version of the format; a reader refuses a newer one.
_FORMAT = 1
# What the configuration of each model that jaxclone knows by name is.
_KINDS: dict[str, tuple[type, ...]] = {
    "encoder": (Wav2Vec2Config,),
    "pretraining": (Wav2Vec2PretrainingConfig,),
    "speaker": (SpeakerEncoderConfig,),
    "converter": (ConverterConfig,),
    "adapter": (AdaptConfig,),
    "vocoder": get_args(AnyGeneratorConfig),
    "discriminators": get_args(DiscriminatorsConfig),
}
_CONVERSION = ("encoder", "speaker", "converter")
_WEIGHTS, _CONFIG, _CARD = "model.safetensors", "config.json", "README.md"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Models in memory.

    Attributes:
        models: parameters by model name.
        configs: the configuration of each model, by the same names.
        audio: how sound becomes frames, the same for all of them.
        origins: of a model that was imported, the published format and its own description, so
            that the model can be given back as it came.
    """

    models: dict[str, Tree]
    configs: dict[str, Any]
    audio: AudioSpec
    origins: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What people should know of a bundle before they use it.

    Attributes:
        title: names it.
        command: what made it.
        seed: of everything random in that.
        data: one line a corpus: what it is and how much of it was used.
        licences: one line a licence or an attribution that the data asks for.
        scores: measured on data outside training.
    """

    title: str
    command: str = ""
    seed: int = 0
    data: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def render(self, models: Mapping[str, Any], audio: AudioSpec) -> str:
        """The card as Markdown.

        Args:
            models: the configuration of each model.
            audio: what the models hear and speak.
        """

        def items(lines: Any) -> str:
            return "\n".join(f"- {line}" for line in lines) or "- not recorded"

        made = f"\nMade by `{self.command}`, seed {self.seed}.\n" if self.command else ""
        return f"""# {self.title}
{made}
Models for voice cloning with jaxclone {__version__}, {audio.sample_rate} Hz, {audio.n_mels} mels:

{items(f"`{name}`: {type(config).__name__}" for name, config in models.items())}

## Use

    jaxclone convert SOURCE.wav --reference TARGET.wav --out OUT.wav --model THIS_FOLDER [MORE ...]

Cloning needs an encoder, a speaker encoder, a converter and a vocoder; they may lie in several
bundles.

## Data

{items(self.data)}

## Licences and attributions

{items(self.licences)}

## Scores

{items(f"{name}: {score:.4g}" for name, score in self.scores.items())}

## Consent

A voice belongs to the person who speaks with it. Clone a voice only with that person's consent, say
that the result is synthetic where somebody could believe otherwise, and keep no recording that is
not needed: the voice file holds a few vectors and no speech.
"""


def save_bundle(
    folder: str | Path,
    models: Mapping[str, Tree],
    configs: Mapping[str, Any],
    audio: AudioSpec,
    *,
    card: ModelCard | str,
    origins: Mapping[str, Any] | None = None,
) -> None:
    """Writes a bundle; one that is there already is replaced once the new one is whole.

    Args:
        folder: the bundle.
        models: parameters by model name, boxed with their axes or not.
        configs: the configuration of each model, by the same names.
        audio: how sound becomes frames.
        card: the model card, or its text.
        origins: see `Bundle`; JSON.

    Raises:
        UserError: the folder exists and is no bundle or holds more, or cannot be written.
    """
    if models.keys() != configs.keys():
        raise ValueError(f"models {sorted(models)} but configurations of {sorted(configs)}")
    folder = Path(folder)
    if folder.exists() and not _may_replace(folder):
        raise UserError(f"{folder} exists and is not a bundle: choose another folder")
    description = {
        "format": _FORMAT,
        "audio": to_data(audio),
        "models": {name: to_data(config) for name, config in configs.items()},
        "versions": {
            "jaxclone": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "flax", "numpy")},
        },
        **({"origins": dict(origins)} if origins else {}),
    }
    text = card if isinstance(card, str) else card.render(configs, audio)
    with whole_folder(folder) as new:
        save_tensors(new / _WEIGHTS, meta.unbox(dict(models)))
        (new / _CONFIG).write_text(json.dumps(description, indent=2) + "\n", "utf-8")
        (new / _CARD).write_text(text, "utf-8")


def _may_replace(folder: Path) -> bool:
    """Whether a folder is empty, or a bundle and nothing else.

    A run, and published weights, have a `config.json` too.
    """
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {_CONFIG, _WEIGHTS, _CARD}:
        return False
    if not (folder / _CONFIG).exists():
        return not any(folder.iterdir())
    try:
        found = json.loads((folder / _CONFIG).read_text("utf-8"))
    except (OSError, ValueError):  # damaged: there is nothing to be lost that could be read
        return (folder / _WEIGHTS).exists()
    return isinstance(found, dict) and {"format", "audio", "models"} <= found.keys()


def load_bundle(*folders: str | Path) -> Bundle:
    """Reads one bundle, or several as one.

    Args:
        *folders: bundles; where two hold a model of the same name, the later one's is taken.

    Raises:
        UserError: a folder is no whole bundle, the bundles differ in their AudioSpec, or a model
            is not what its configuration says.
    """
    if not folders:
        raise UserError("no bundle given")
    bundles = [_read(Path(folder)) for folder in folders]
    audio = bundles[0].audio
    models: dict[str, Tree] = {}
    configs: dict[str, Any] = {}
    origins: dict[str, Any] = {}
    for folder, bundle in zip(folders, bundles):
        audio.require(bundle.audio, f"bundle {folder}")
        models |= bundle.models
        configs |= bundle.configs
        kept = {name: origin for name, origin in origins.items() if name not in bundle.models}
        origins = kept | bundle.origins
    for name, shapes in parameter_shapes(configs, audio).items():
        # A converter is whole without adapters.
        if name in models and (models[name] or name != "adapter"):
            require_shapes(models[name], shapes, f"model {name}")
    return Bundle(models, configs, audio, origins)


def parameter_shapes(configs: Mapping[str, Any], audio: AudioSpec) -> dict[str, Tree]:
    """The parameters, as shapes, of those models that jaxclone knows by name.

    Args:
        configs: the configuration of each model.
        audio: how sound becomes frames.

    Raises:
        UserError: their configurations fit no such models.
    """
    for name, config in configs.items():
        kinds = _KINDS.get(name)
        if kinds and not isinstance(config, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"model {name} is a {type(config).__name__}, not a {wanted}")
    key = rng.root(0)
    shapes: dict[str, Tree] = {}
    try:
        if all(name in configs for name in _CONVERSION):
            networks = VoiceConversion(audio, *(configs[name] for name in _CONVERSION))
            shapes |= jax.eval_shape(networks.init, key)
        elif "encoder" in configs:
            waveform, length = jnp.zeros((1, audio.sample_rate)), jnp.array([audio.sample_rate])
            encoder = Wav2Vec2Encoder(configs["encoder"])
            shapes["encoder"] = jax.eval_shape(encoder.init, key, waveform, length)["params"]
        if "pretraining" in configs:
            shapes["pretraining"] = _heads(configs["pretraining"], audio.sample_rate)
        if "vocoder" in configs:
            configs["vocoder"].require(audio)
            generator, mel = make_generator(configs["vocoder"]), jnp.zeros((1, 4, audio.n_mels))
            shapes["vocoder"] = jax.eval_shape(generator.init, key, mel)["params"]
        if "discriminators" in configs:
            # With their singular vectors.
            judges, waveform = make_discriminators(configs["discriminators"]), jnp.zeros((1, 8192))
            shapes["discriminators"] = jax.eval_shape(judges.init, key, waveform)
    except UserError:
        raise
    except (ArithmeticError, FlaxError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the configurations of {', '.join(configs)} fit no model: {reason}"
        ) from error
    return meta.unbox(shapes)


def _heads(config: Wav2Vec2PretrainingConfig, samples: int) -> Tree:
    """What is needed beside the encoder to pretrain it, as shapes."""

    def shape(size: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, size), dtype)

    frames = config.encoder.frame_length(samples)
    masked = MaskedFrames(shape(frames, bool), shape(1, jnp.int32), shape(1, bool))
    init = Wav2Vec2Pretraining(config).init
    waveform, length = jnp.zeros((1, samples)), jnp.array([samples])
    params = jax.eval_shape(init, rng.root(0), waveform, length, masked)["params"]
    return {name: value for name, value in params.items() if name != "encoder"}


def _read(folder: Path) -> Bundle:
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a bundle: it has no {name}")
    try:
        description = json.loads((folder / _CONFIG).read_text("utf-8"))
        found = description["format"]
        data, audio_data = dict(description["models"]), description["audio"]
        origins = dict(description.get("origins", {}))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / _CONFIG} does not describe a bundle ({error})") from error
    if found != _FORMAT:
        raise UserError(f"{folder} has bundle format {found!r}, this jaxclone reads {_FORMAT}")
    try:
        audio = from_data(audio_data)
        configs = {name: from_data(item) for name, item in data.items()}
    except UserError as error:
        raise UserError(f"{folder / _CONFIG}: {error}") from error
    if not isinstance(audio, AudioSpec):
        raise UserError(f"{folder / _CONFIG}: 'audio' is not an AudioSpec")
    models, _ = load_tensors(folder / _WEIGHTS)
    if unknown := sorted(models.keys() - configs.keys()):
        raise UserError(f"{folder}: {_CONFIG} does not describe the model {unknown[0]!r}")
    # A model without parameters leaves nothing in the file.
    return Bundle({name: models.get(name, {}) for name in configs}, configs, audio, origins)


def require_shapes(params: Tree, expected: Tree, what: str) -> None:
    """Checks parameters against those that a model of their configuration has.

    Args:
        params: arrays.
        expected: arrays or shapes, of `jax.eval_shape` for one.
        what: names the parameters in the message.

    Raises:
        UserError: a parameter is missing, unknown, or of another shape or type; it is named.
    """
    found, wanted = flatten(params), flatten(meta.unbox(expected))
    if missing := sorted(wanted.keys() - found.keys()):
        raise UserError(f"{what} lacks the parameter {missing[0]}")
    if unknown := sorted(found.keys() - wanted.keys()):
        raise UserError(f"{what} has the parameter {unknown[0]}, which its configuration does not")
    for name, leaf in wanted.items():
        here, there = (f"{x.dtype}{list(x.shape)}" for x in (found[name], leaf))
        if here != there:
            raise UserError(f"{what}: {name} is {here}, its configuration asks for {there}")
