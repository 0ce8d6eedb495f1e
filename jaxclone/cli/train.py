"""`jaxclone train`: runs a config, or continues its run."""

from __future__ import annotations

import collections
import re
import shlex
from collections.abc import Sequence
from typing import Any

import jax

from data_pipelines.corpus import Corpus
from jaxclone import config as configs
from jaxclone.config import UsageError
from jaxclone.evaluate import quality
from jaxclone.export.bundle import ModelCard, load_bundle, save_bundle
from jaxclone.sharding.hosts import initialise_distributed
from jaxclone.sharding.mesh import to_host
from jaxclone.train.loop import fit, run_folder
from jaxclone.train.task import RunConfig, Task
from jaxclone.types import Tree, UserError

_HELP = """usage: jaxclone train CONFIG [--a.b VALUE ...]

Runs a config: a Python file with a get_config(), or the name of one that comes with jaxclone.
Fields of the config are overridden by their dotted names; jaxclone train CONFIG --help lists them.

The run folder (--out, or runs/NAME) gets config.json, checkpoints/, metrics.jsonl and, at the end,
bundle/ with the trained models; companions/ has what only served to train them, for --init-from.
The same command again continues a run that was interrupted.
"""


def main(args: Sequence[str]) -> dict[str, Any] | None:
    """Runs `jaxclone train`; returns nothing on other processes of a run than its first."""
    if not args:
        raise UsageError("jaxclone train needs a config; see jaxclone train --help")
    if args[0] in ("-h", "--help"):
        print(_HELP)
        print("Configs that come with jaxclone:\n")
        print("\n".join(f"  {name}" for name in configs.names()))
        raise SystemExit(0)
    name, *overrides = args
    config = configs.load(name)
    if not isinstance(config, RunConfig):
        raise UserError(f"config {name} is a {type(config).__name__}, which is no run to train")
    # tyro keeps a line break before an indented line only.
    about = re.sub(r"(?<!\n)\n(?!\n)", "\n  ", configs.describe(name))
    config = configs.override(config, overrides, f"jaxclone train {name}", about or None)
    initialise_distributed(config.hosts)
    task = config.task()
    folder = run_folder(config)
    pretrained = pretrained_models(config, task)
    config.prepare(folder, load_bundle)
    judge = quality.judge(config.audio) if task.copies else None
    run = fit(config, task, pretrained=pretrained, run_dir=folder, judge=judge)
    models = task.models(run.state)
    models = to_host({name: models[name] for name in (*task.model_configs, *task.companions)})
    if jax.process_index() != 0:
        return None
    command = f"jaxclone train {shlex.join(args)}"
    card = model_card(config, command, run.summary["metrics"])
    for name, kept in (("bundle", task.model_configs), ("companions", task.companions)):
        if kept:
            held = {model: models[model] for model in kept}
            save_bundle(folder / name, held, kept, config.audio, card=card)
    return {"run": folder, "bundle": folder / "bundle", **run.summary}


def pretrained_models(config: RunConfig, task: Task) -> dict[str, Tree]:
    """The models of `config.init_from` that the task has or uses too.

    Raises:
        UserError: a bundle cannot be read, it is of another AudioSpec, one of its models is
            configured otherwise, it has none that the task could use, or lacks one that the task
            cannot do without.
    """
    needed = [name for name, helper in task.helpers.items() if helper is not None]
    if not config.init_from:
        if needed:
            raise UserError(
                f"{config.name} uses a trained {', '.join(needed)}: name bundles that hold them "
                "with --init-from"
            )
        return {}
    bundle = load_bundle(*config.init_from)
    where = " + ".join(config.init_from)
    config.audio.require(bundle.audio, f"--init-from {where}")
    wanted = {**task.helpers, **task.companions, **task.model_configs}
    shared = [name for name in wanted if name in bundle.models]
    if not shared:
        raise UserError(
            f"--init-from {where} holds {', '.join(bundle.models)}, and none of the models of this "
            f"run: {', '.join(wanted)}"
        )
    if missing := [name for name in needed if name not in shared]:
        raise UserError(
            f"--init-from {where} lacks the {', '.join(missing)} that {config.name} uses: name "
            "another bundle beside it"
        )
    for name in shared:
        if wanted[name] is None:
            continue
        fields = configs.difference(wanted[name], bundle.configs[name], as_models=True)
        if fields:
            raise UserError(
                f"--init-from {where}: its {name} is another model than this config's: "
                f"{', '.join(fields)} differ"
            )
    return {name: bundle.models[name] for name in shared}


def model_card(config: RunConfig, command: str, metrics: dict[str, float]) -> ModelCard:
    """What is known of a run when it has ended."""
    corpus = Corpus.open(config.data.corpus)
    parts: dict[tuple[str, str], list[Any]] = collections.defaultdict(list)
    for row in corpus.rows(config.data.split):
        parts[row.extra.get("corpus", ""), row.extra.get("licence", "")].append(row)
    data, licences = [], []
    for (name, licence), rows in sorted(parts.items()):
        name = name or corpus.folder.name
        hours = sum(row.seconds for row in rows) / 3600
        speakers = len({row.speaker for row in rows} - {""})
        data.append(f"{name}: {len(rows)} recordings, {hours:.3g} h, {speakers} known speakers")
        if licence:
            licences.append(f"{name}: {licence}")
    if config.bundles():
        data.append(f"and what it learnt from was trained on: {', '.join(config.bundles())}")
    return ModelCard(
        title=config.name,
        command=command,
        seed=config.seed,
        data=tuple(data),
        licences=tuple(licences),
        scores={name: value for name, value in metrics.items() if name.startswith("valid/")},
    )
