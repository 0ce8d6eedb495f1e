"""The units that HuBERT predicts: features of the corpus, k-means on some, the nearest of all.

Everything is kept as it gets ready, and what is there is not made again: features in
`<run>/targets/features-*`, which are removed once the centres are known; the centres, every so
many updates, in `<run>/targets/kmeans.safetensors`; the units beside the shards of the corpus.
Each process reads shards of its own for features and units; the centres are found by all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from data_pipelines.corpus import Corpus, Shard
from data_pipelines.loader import CropConfig
from data_pipelines.transforms import generator
from data_pipelines.units import MOST, NO_UNIT, units_made_by, units_path, write_units
from jaxclone import config as configs
from jaxclone.files import whole_file
from jaxclone.models.hubert import HubertConfig
from jaxclone.models.kmeans import KMeansConfig, KMeansState, nearest
from jaxclone.sharding.hosts import failing_alone, stop_at_exit
from jaxclone.sharding.mesh import (
    MeshConfig,
    activate,
    batch_parts,
    batch_sharding,
    make_mesh,
    replicated,
)
from jaxclone.tensors import load_tensors, save_tensors
from jaxclone.train.errors import Interrupted
from jaxclone.train.features import (
    Apply,
    Features,
    frames_of,
    layer_features,
    mfcc_features,
    over_frames,
    without_mean,
)
from jaxclone.train.kmeans import Table, fit_kmeans
from jaxclone.train.signals import Interrupting
from jaxclone.train.task import RunConfig
from jaxclone.tree import fingerprint
from jaxclone.types import Tree, UserError, require_positive

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TargetsConfig:
    """What units are made of.

    Attributes:
        bundle: whose encoder makes the features; "" for MFCC.
        layer: of that encoder, counted from 1.
        subtract_mean: each recording's mean from its features, so that units say less of the voice
            and more of the phone; the published systems do not.
        fraction: share of the training recordings that the centres are found on.
        kmeans: how they are found.
        batch_size: recordings that a device encodes at once.
        chunk_seconds: longer recordings are encoded in parts of this length.
    """

    bundle: str = ""
    layer: int = 6
    subtract_mean: bool = False
    fraction: float = 0.1
    kmeans: KMeansConfig = KMeansConfig()
    batch_size: int = 8
    chunk_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"targets.fraction must be above 0 and at most 1, got {self.fraction}")
        require_positive(self, "layer", "batch_size", "chunk_seconds")


def make_targets(
    run: RunConfig,
    targets: TargetsConfig,
    model: HubertConfig,
    data: Sequence[CropConfig],
    folder: Path,
    load: Callable[[str], Any],
) -> None:
    """Makes the units of a run, or what is missing of them; every process must call it.

    Args:
        run: seed, AudioSpec, precision and mesh.
        targets: what the units are made of.
        model: that will predict them.
        data: what gets units; the centres are found on the first.
        folder: of the features and centres.
        load: reads a bundle, `export.bundle.load_bundle`.

    Raises:
        UserError: no such corpus or bundle, settings that do not fit it, units of that name that
            another run made, or a folder that cannot be written.
        Interrupted: stopped by a signal; the same call continues.
    """
    if model.units > MOST:
        raise UserError(f"model.units {model.units} is more than the {MOST} that can be stored")
    stopped = None
    with failing_alone():
        try:
            with Interrupting("the units were made"):
                _Targets(run, targets, model, data, folder, load).make()
        except Interrupted as stop:
            stopped = stop
    if stopped is not None:
        stop_at_exit()
        raise stopped


class _Targets:
    def __init__(
        self,
        run: RunConfig,
        targets: TargetsConfig,
        model: HubertConfig,
        data: Sequence[CropConfig],
        folder: Path,
        load: Callable[[str], Any],
    ):
        self.run, self.targets, self.model = run, targets, model
        self.folder, self.load = folder, load
        different = {(part.corpus, part.split, part.units): part for part in data}
        self.data = [(Corpus.open(part.corpus, run.audio), part) for part in different.values()]
        self.mesh = make_mesh(run.mesh)
        self.here = make_mesh(MeshConfig(), jax.local_devices())

    def make(self) -> None:
        if not (self.folder / "config.json").is_file():
            self._features()  # wrong settings are to be told before they are written down
        self._claim()
        centres, made_by = self._centres()
        missing = [
            (corpus, part, shard)
            for corpus, part in self.data
            for shard in _mine(corpus.shards(part.split))
            if not self._has_units(corpus, part, shard, made_by)
        ]
        if missing:
            self._label(missing, centres, made_by)
        _together("units are stored")

    def _claim(self) -> None:
        """Writes down what is made here, or checks that it is the same as before.

        Raises:
            UserError: it is not.
        """
        free = TargetsConfig()  # where a bundle lies, and what fits a device, may change
        about = {
            "targets": configs.to_data(
                dataclasses.replace(
                    self.targets,
                    bundle=free.bundle,
                    batch_size=free.batch_size,
                    chunk_seconds=free.chunk_seconds,
                )
            ),
            "units": self.model.units,
            "seed": self.run.seed,
            "split": self.data[0][1].split,
            "corpus": self.data[0][0].digest,
        }
        path = self.folder / "config.json"
        if jax.process_index() == 0 and not path.is_file():
            with whole_file(path) as file:
                file.write(json.dumps(about, indent=1).encode() + b"\n")
        _together("settings of the units are written")
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove {self.folder}") from None
        # An older version did not write down the corpus, which is not known to differ.
        if not isinstance(found, dict) or {"corpus": about["corpus"], **found} != about:
            raise UserError(
                f"{self.folder} holds units that were begun with other settings of targets, "
                "model.units, seed or data; start a new run folder with --out"
            )

    # Centres.

    def _centres(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The centres, and what made them."""
        path, units = self.folder / "kmeans.safetensors", self.model.units
        state, about = _read_state(path)
        if state is not None and (state.centres.ndim, *state.centres.shape[:1]) != (2, units):
            raise UserError(
                f"{path} holds centres of shape {state.centres.shape}, and model.units is {units}: "
                "remove it, and they are found anew"
            )
        if not about.get("done"):
            features = self._features()
            source = features.made_by
            if about and about["features"] != source:
                raise UserError(
                    f"{path} was begun on features of another model than {self.targets.bundle}; "
                    "start a new run folder with --out"
                )
            table = Table([np.load(p, mmap_mode="r") for p in self._feature_files(features)])

            def keep(state: KMeansState, done: bool) -> None:
                if jax.process_index() == 0:
                    header = {"features": source, "done": done, "vectors": len(table)}
                    save_tensors(path, vars(state), {"about": json.dumps(header)})

            state = fit_kmeans(
                table, units, self.targets.kmeans, self.run.seed, self.mesh, state, keep
            )
            about = {"features": source}
            _together("centres are found")
        assert state is not None, "a file that is done holds a state"
        if jax.process_index() == 0:
            for old in self.folder.glob("features-*"):
                shutil.rmtree(old, ignore_errors=True)
        centres = np.asarray(state.centres)
        mark = fingerprint({"centres": centres})
        return centres, {"features": about["features"], "kmeans": mark, "units": len(centres)}

    @functools.cache  # noqa: B019 - lives as long as the one call of make_targets
    def _features(self) -> Features:
        """What turns waveforms into features.

        Raises:
            UserError: the bundle has no encoder, of these frames and so many layers.
        """
        features = self._plain_features()
        return without_mean(features) if self.targets.subtract_mean else features

    def _plain_features(self) -> Features:
        audio, targets = self.run.audio, self.targets
        if not targets.bundle:
            return mfcc_features(self.model.encoder, audio)
        bundle = self.load(targets.bundle)
        audio.require(bundle.audio, f"bundle {targets.bundle}")
        if "encoder" not in bundle.models:
            raise UserError(f"bundle {targets.bundle} has no encoder to make features with")
        return layer_features(
            bundle.models["encoder"],
            bundle.configs["encoder"],
            targets.layer,
            audio,
            self.run.precision,
        )

    def _feature_files(self, features: Features) -> list[Path]:
        """One file a shard, f32[vectors, width]; what is not there is made."""
        corpus, part = self.data[0]
        mark = fingerprint({"made_by": np.frombuffer(json.dumps(features.made_by).encode(), "u1")})
        folder = self.folder / f"features-{mark[:12]}"
        shards = corpus.shards(part.split)
        files = [folder / f"{Path(shard.name).stem}.npy" for shard in shards]
        missing = [
            (shard, path)
            for shard, path in _mine(list(zip(shards, files)))
            if not _opens(path, features.width)
        ]
        jobs = [(corpus, self._chosen(corpus, shard)) for shard, _ in missing]
        empty = np.full(features.width, np.nan, np.float32)
        with self._encoding("features", jobs, features.apply) as encode:
            for (_, path), (_, chosen) in zip(missing, jobs):
                values = encode(corpus, chosen, fill=empty)
                with whole_file(path) as file:
                    np.save(file, values[~np.isnan(values[:, 0])], allow_pickle=False)
        _together("features are stored")
        return files

    def _chosen(self, corpus: Corpus, shard: Shard) -> np.ndarray:
        """The records of a shard that centres are found on: a function of seed and shard alone."""
        n = int(np.ceil(self.targets.fraction * shard.count))
        order = generator(self.run.seed, "units/chosen", shard.first).permutation(shard.count)
        return shard.first + np.sort(order[:n])

    @contextlib.contextmanager
    def _encoding(
        self, what: str, jobs: Sequence[tuple[Corpus, np.ndarray]], apply: Apply
    ) -> Iterator[Callable[..., np.ndarray]]:
        """A function (corpus, records, fill) -> [frames, ...] on the devices of this process."""
        corpus, targets = self.data[0][0], self.targets
        whole, split = replicated(self.here), batch_sharding(self.here)
        frames = sum(int(frames_of(corpus, records).sum()) for corpus, records in jobs)
        bar = tqdm(
            desc=what,
            total=frames,
            unit="frame",
            unit_scale=True,
            file=sys.stderr,
            disable=jax.process_index() != 0 or not jobs,
            dynamic_ncols=True,
        )
        with activate(self.here), bar:
            params = jax.device_put(self._features().params, whole) if jobs else {}
            run = jax.jit(apply, in_shardings=(whole, split, split), out_shardings=split)

            def compute(waveform: np.ndarray, length: np.ndarray) -> tuple[jax.Array, jax.Array]:
                # Among several processes, jit itself divides no arrays of the host.
                return run(params, *jax.device_put((waveform, length), split))

            yield functools.partial(
                over_frames,
                compute=compute,
                rows=targets.batch_size * batch_parts(self.here),
                chunk=max(1, round(targets.chunk_seconds * corpus.spec.frame_rate)),
                on_progress=bar.update,
            )

    # Units.

    def _has_units(
        self, corpus: Corpus, part: CropConfig, shard: Shard, made_by: dict[str, Any]
    ) -> bool:
        path = units_path(corpus, part.units, shard)
        found = units_made_by(path, int(frames_of(corpus, shard.records).sum()))
        if found is not None and found != made_by:
            raise UserError(
                f"{path.parent} holds units that another run made: give those of this run a name "
                "of their own with --data.units and --valid.units, or remove that folder"
            )
        return found is not None

    def _label(
        self,
        missing: list[tuple[Corpus, CropConfig, Shard]],
        centres: np.ndarray,
        made_by: dict[str, Any],
    ) -> None:
        features = self._features()
        if features.made_by != made_by["features"]:
            raise UserError(
                f"the centres in {self.folder} are of features of another model than "
                f"{self.targets.bundle}; start a new run folder with --out"
            )
        if centres.shape[1] != features.width:
            raise UserError(
                f"the centres in {self.folder} are of {centres.shape[1]} numbers each, and the "
                f"features of {features.width}: remove kmeans.safetensors there"
            )

        def units(params: Tree, waveform: jax.Array, length: jax.Array) -> tuple[Any, Any]:
            values, frame_length = features.apply(params, waveform, length)
            place, _ = nearest(values.reshape(-1, values.shape[-1]), centres)
            return place.reshape(values.shape[:2]), frame_length

        jobs = [(corpus, shard.records) for corpus, _, shard in missing]
        with self._encoding("units", jobs, units) as encode:
            for corpus, part, shard in missing:
                values = encode(corpus, shard.records, fill=np.array(NO_UNIT, np.int32))
                write_units(units_path(corpus, part.units, shard), values, made_by)


def _mine(items: Sequence[T]) -> list[T]:
    """This process's part of what the processes share out."""
    return list(items[jax.process_index() :: jax.process_count()])


def _together(what: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _opens(path: Path, width: int) -> bool:
    """Whether there is a file of features of this width, and whole."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # noqa: BLE001 - numpy does not say what a damaged header raises
        return False
    return isinstance(found, np.ndarray) and found.ndim == 2 and found.shape[1] == width


def _read_state(path: Path) -> tuple[KMeansState | None, dict[str, Any]]:
    """The state that was kept and what was kept with it; (None, {}) when there is none.

    Raises:
        UserError: the file is damaged, or not all processes see the same.
    """
    state, about = None, {}
    if path.is_file():
        arrays, header = load_tensors(path)
        try:
            state, about = KMeansState(**arrays), dict(json.loads(header["about"]))
            about["features"]
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path} holds no centres: remove it, and they are found anew"
            ) from None
    if jax.process_count() > 1:
        step = np.array(-1 if state is None else int(state.step))
        if len(set(multihost_utils.process_allgather(step).tolist())) > 1:
            raise UserError(f"the processes do not see the same {path}")
    return state, about
