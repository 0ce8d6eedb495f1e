"""Configurations: load a `configs/*.py`, override it from the command line, to and from JSON.

A configuration is a frozen dataclass of numbers, strings, tuples and further frozen dataclasses.
A config file is Python and defines `get_config()`; nothing else is ever evaluated: overrides are
parsed by the type of their field, and the JSON of a run or a bundle names our own dataclasses only.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import importlib
import inspect
import io
import json
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, TypeVar

from jaxclone.types import UserError

T = TypeVar("T")
# Where the dataclasses that a JSON may name live.
PACKAGES = ("jaxclone", "data_pipelines")
# The key of a JSON object that names its dataclass: `jaxclone.audio.spec.AudioSpec`.
TYPE = "_type"


class UsageError(UserError):
    """A command line that cannot be understood; the `jaxclone` command exits with 2."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of an error message that names the most similar of `names`; "" when there are none.

    >>> did_you_mean("data.corpsu", ["data.corpus", "steps"])
    "; did you mean 'data.corpus'?"
    """
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
    return f"; did you mean {found[0]!r}?" if found else ""


# Config files.


def load(name: str) -> Any:
    """The configuration that a config file's `get_config()` makes.

    A file whose `get_config` takes one argument, annotated with a `Literal`, has variants:
    `demo/pretrain:smoke` is `get_config("smoke")`.

    Args:
        name: a path to a Python file, or the name of a configuration that comes with jaxclone,
            such as `demo/pretrain`; then a variant, if wanted.

    Raises:
        UserError: no such file, name or variant, or the file has no `get_config()` that returns a
            dataclass.
    """
    path, variant = _find(name)
    module = types.ModuleType(f"jaxclone_config_{path.stem}")
    sys.modules[module.__name__] = module  # a dataclass of the file looks up its module here
    try:
        SourceFileLoader(module.__name__, str(path)).exec_module(module)
    except SyntaxError as error:
        where = f"config {path}, line {error.lineno}" if error.lineno else f"config {path}"
        raise UserError(f"{where}: {error.msg}") from error
    except Exception as error:
        raise _failed(path, error) from error
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"config {path} has no function get_config()")
    if variant:
        hints = typing.get_type_hints(get_config)
        parameters = inspect.signature(get_config).parameters
        variants = [v for p in parameters for v in typing.get_args(hints.get(p))]
        if variant not in variants:
            raise UserError(
                f"config {path} has no variant {variant!r}{did_you_mean(variant, variants)}"
            )
    try:
        config = get_config(*filter(None, [variant]))
    except Exception as error:
        raise _failed(path, error) from error
    if not _is_config(config):
        raise UserError(f"get_config() of {path} returned {type(config).__name__}, not a dataclass")
    return config


def _failed(path: Path, error: Exception) -> UserError:
    """What a config file's own code raised, and where; a UserError says enough by itself."""
    if isinstance(error, UserError):
        return error
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"config {path}, line {lines[-1]}" if lines else f"config {path}"
    return UserError(f"{where}: {type(error).__name__}: {error}")


def describe(name: str) -> str:
    """What the docstring of a config file says: command, hardware, time, score.

    Raises:
        UserError: no such file or name.
    """
    path, _ = _find(name)
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""


def names() -> list[str]:
    """The configurations that `load` finds by name."""
    return sorted(_named())


def _named() -> dict[str, Path]:
    """Config files by name: the checkout's first, then those that pip installed."""
    found: dict[str, Path] = {}
    checkout = Path(__file__).resolve().parent.parent / "configs"
    for root in (checkout, Path(sys.prefix) / "share" / "jaxclone" / "configs"):
        for path in root.rglob("*.py"):
            if not path.name.startswith("_"):
                found.setdefault(path.relative_to(root).with_suffix("").as_posix(), path)
    return found


def _find(name: str) -> tuple[Path, str]:
    """The file of a configuration, and which variant of it is meant."""
    if Path(name).is_file():
        return Path(name), ""
    stem, _, variant = name.partition(":")
    if Path(stem).is_file():
        return Path(stem), variant
    named = _named()
    stem = stem.removesuffix(".py")
    if stem in named:
        return named[stem], variant
    raise UserError(f"no config file or name {stem!r}{did_you_mean(stem, named)}")


# The command line.


def override(
    config: T, args: Sequence[str], prog: str = "config", description: str | None = None
) -> T:
    """`config` with dotted fields replaced, as in `["--data.batch-size", "8"]`.

    Each value is parsed by the type of its field. A field that may hold one of several dataclasses
    keeps the one that `config` holds.

    Args:
        config: a frozen dataclass.
        args: what follows the config on the command line.
        prog: how messages and `--help` name the command.
        description: begins the help instead of the docstring's summary.

    Raises:
        UsageError: an unknown field or a value of the wrong type.
        SystemExit: `--help` was asked for and printed.
    """
    return parse(type(config), args, prog=prog, default=config, description=description)


def parse(
    kind: Callable[..., T],
    args: Sequence[str],
    *,
    prog: str,
    default: T | None = None,
    description: str | None = None,
) -> T:
    """What `kind`, a dataclass or a function, returns when called with the options in `args`.

    Args:
        kind: its signature gives the options, its docstring the help.
        args: the command line after the command's name.
        prog: how messages and `--help` name the command.
        default: an instance of the dataclass to start from.
        description: begins the help instead of the docstring's summary.

    Raises:
        UsageError: what is wrong with the command line, in one line.
        SystemExit: `--help` was asked for and printed.
    """
    import tyro

    complaint = io.StringIO()
    flags: Any = tyro.conf.FlagCreatePairsOff
    start: dict[str, Any] = {}
    if default is not None:  # a config: every field is spelled as it is named and takes a value
        flags = tyro.conf.FlagConversionOff
        start = {"default": default, "use_underscores": True}
    try:
        with contextlib.redirect_stderr(complaint):
            value, unknown = tyro.cli(
                kind,
                args=list(args),
                prog=prog,
                description=description,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands, flags),
                **start,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_first_paragraph(complaint.getvalue())) from None
    if unknown:
        option = unknown[0].split("=")[0]
        if not option.startswith("--"):
            raise UsageError(f"unexpected argument {option!r}; see {prog} --help")
        known = _options(kind if default is None else default)
        if default is None:
            known = [name.replace("_", "-") for name in known]
        raise UsageError(f"unknown option {option}{did_you_mean(option, known)}")
    return value


def _first_paragraph(box: str) -> str:
    r"""The complaint inside a box that tyro draws, without its frame and the help that follows.

    >>> _first_paragraph("Value error\n-------\n no such\n   folder\n-----\nFor help, see")
    'no such folder'
    """
    lines: list[str] = []
    for line in box.splitlines()[1:]:  # without its title
        text = line.strip("│╰╯|+ ")
        if text.strip("─-"):
            lines.append(text)
        elif lines:
            break
    return re.sub(r"^Error parsing (?:\w+: )?", "", " ".join(lines)) or box.strip()


def _options(kind: Any, prefix: str = "--") -> list[str]:
    """The options of a function, or of a dataclass and of those in it."""
    if not dataclasses.is_dataclass(kind):
        return [prefix + name for name in inspect.signature(kind).parameters]
    options = []
    for field in dataclasses.fields(kind):
        value = getattr(kind, field.name, None)
        if _is_config(value):
            options += _options(value, f"{prefix}{field.name}.")
        else:
            options.append(prefix + field.name)
    return options


# JSON.


def to_json(config: Any) -> str:
    """A configuration as JSON that `from_json` reads back into an equal one.

    Raises:
        TypeError: a field holds something that is no number, string, tuple or dataclass.
    """
    return json.dumps(to_data(config), indent=2)


def from_json(text: str, packages: Sequence[str] = PACKAGES) -> Any:
    """The configuration that `to_json` wrote.

    Fields that the JSON lacks take their defaults, so that older files stay readable.

    Args:
        text: JSON of one configuration.
        packages: the packages whose dataclasses it may name.

    Raises:
        UserError: not JSON, a type that is no dataclass of `packages`, an unknown field, or a
            value of the wrong type.
    """
    try:
        return from_data(json.loads(text), packages)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"configuration is not valid JSON: {error}") from error
    except RecursionError as error:
        raise UserError("configuration is nested too deeply") from error


def to_data(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts and lists; the objects that `to_json` writes."""
    if not _is_config(config):
        raise TypeError(f"{type(config).__name__} is not a dataclass")
    return _encode(config, type(config).__name__)


def from_data(data: Any, packages: Sequence[str] = PACKAGES) -> Any:
    """The configuration that `to_data` took apart; raises like `from_json`."""
    if not isinstance(data, dict):
        raise UserError(f"configuration must be a JSON object, got {type(data).__name__}")
    return _decode_dataclass(data, "config", tuple(packages))


def difference(a: Any, b: Any, as_models: bool = False) -> list[str]:
    """The dotted names of the fields in which two configurations differ.

    A field that holds dataclasses of different types is named itself.

    Args:
        a: a configuration.
        b: another.
        as_models: leave out what does not tell models apart: the fields that their class names in
            `HOW`, of how they are trained and computed.

    >>> from jaxclone.audio.spec import AudioSpec
    >>> difference(AudioSpec(), AudioSpec(n_mels=40, hop_length=256))
    ['hop_length', 'n_mels']
    """
    return [name.lstrip(".") or TYPE for name in _difference(a, b, "", as_models)]


def _difference(a: Any, b: Any, name: str, as_models: bool) -> list[str]:
    if _is_config(a) and type(a) is type(b):
        left_out = getattr(a, "HOW", ()) if as_models else ()
        return [
            found
            for field in (field.name for field in dataclasses.fields(a))
            if field not in left_out
            for found in _difference(
                getattr(a, field), getattr(b, field), f"{name}.{field}", as_models
            )
        ]
    return [] if a == b else [name]


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _encode(value: Any, where: str) -> Any:
    if _is_config(value):
        kind = type(value)
        return {TYPE: f"{kind.__module__}.{kind.__qualname__}"} | {
            field.name: _encode(getattr(value, field.name), f"{where}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if type(value) is tuple:
        return [_encode(item, where) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{where} holds a {type(value).__name__}, which is no part of a configuration")


def _decode(value: Any, where: str, packages: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return _decode_dataclass(value, where, packages)
    if isinstance(value, list):
        return tuple(_decode(item, where, packages) for item in value)
    return value


def _decode_dataclass(data: dict[str, Any], where: str, packages: tuple[str, ...]) -> Any:
    kind = _dataclass_named(data.get(TYPE), where, packages)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    values = {}
    for name, item in data.items():
        if name == TYPE:
            continue
        if name not in fields:
            raise UserError(f"{where}: unknown field {name!r}{did_you_mean(name, fields)}")
        values[name] = _decode(item, f"{where}.{name}", packages)
        if not _matches(values[name], hints[name]):
            expected = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
            raise UserError(f"{where}.{name}: {json.dumps(item)[:60]} is not of type {expected}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"{where}: field {name!r} is missing")
    try:
        return kind(**values)
    except UserError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its values fit no {kind.__name__} ({error})") from error


def _dataclass_named(tag: Any, where: str, packages: tuple[str, ...]) -> type:
    """The dataclass that a type tag names; only modules of `packages` are ever imported."""
    module_name, _, name = str(tag).rpartition(".")
    if module_name.split(".")[0] in packages:
        with contextlib.suppress(ImportError):
            kind = getattr(importlib.import_module(module_name), name, None)
            defined_here = getattr(kind, "__module__", None) == module_name
            if defined_here and isinstance(kind, type) and dataclasses.is_dataclass(kind):
                return kind
    raise UserError(f"{where}: {str(tag)[:80]!r} is not the type of a configuration")


def _matches(value: Any, hint: Any) -> bool:
    """Whether a decoded value is what a field's annotation allows."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, choice) for choice in choices)
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in choices)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if choices[-1] is Ellipsis:
            choices = choices[:1] * len(value)
        return len(value) == len(choices) and all(map(_matches, value, choices))
    if hint is float:
        return type(value) in (int, float)
    if hint is int:
        return type(value) is int
    return hint is Any or isinstance(value, hint)
