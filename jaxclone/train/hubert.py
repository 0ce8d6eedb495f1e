"""Self-supervised pretraining of the encoder: HuBERT."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from data_pipelines.loader import CropConfig
from jaxclone import rng
from jaxclone.losses.masked_units import MaskedUnitsConfig, masked_unit_loss
from jaxclone.models.hubert import Hubert, HubertConfig
from jaxclone.nn.masking import MaskingConfig
from jaxclone.train.health import TAMER, Watch
from jaxclone.train.masked import NamedKeys, mask_batch, masked_task
from jaxclone.train.optim import OptimConfig
from jaxclone.train.targets import TargetsConfig, make_targets
from jaxclone.train.task import RunConfig, Task
from jaxclone.types import Array, Batch, Metrics, Tree, UserError, require_positive


@dataclasses.dataclass(frozen=True)
class UnitCollapseConfig:
    """When the units, or the naming of them, count as collapsed, which is reported once.

    Attributes:
        perplexity: units that are there, and that the model names, of which there must not be
            fewer; 1 is one unit for everything.
        steps: for so long there may be.
    """

    perplexity: float = 2.0
    steps: int = 1000

    def __post_init__(self) -> None:
        require_positive(self, "perplexity", "steps", or_zero=True)

    def watches(self) -> tuple[Watch, ...]:
        """What to watch."""
        return (
            Watch(
                "unit_perplexity",
                self.perplexity,
                self.steps,
                "nearly all frames have the same unit",
                "other features for the units (targets.layer, targets.subtract_mean), more of the "
                "corpus for the centres (targets.fraction), or recordings with less silence",
            ),
            Watch(
                "prob_perplexity",
                self.perplexity,
                self.steps,
                "the model names the same unit for all frames",
                TAMER,
            ),
        )


@dataclasses.dataclass(frozen=True)
class HubertPretrainConfig(RunConfig):
    """One iteration of HuBERT: units are made, then an encoder learns to name those it cannot see.

    Attributes:
        model: sizes of the encoder and its head.
        masking: spans of frames to mask; the default is the published `mask_prob` 0.80.
        loss: weights of the loss.
        optim: optimiser.
        targets: what the units are made of.
        collapse: when to warn of it.
    """

    model: HubertConfig = HubertConfig()
    masking: MaskingConfig = MaskingConfig(start_probability=0.08, span=10, min_spans=2)
    loss: MaskedUnitsConfig = MaskedUnitsConfig()
    optim: OptimConfig = OptimConfig()
    targets: TargetsConfig = TargetsConfig()
    collapse: UnitCollapseConfig = UnitCollapseConfig()

    def task(self) -> Task:
        """The functions of this run."""
        for name, data in (("data", self.data), ("valid", self.valid)):
            if data is not None and not (isinstance(data, CropConfig) and data.units):
                raise UserError(f"HuBERT is trained on crops with units: name them in {name}.units")
        encoder = self.model.encoder
        network = Hubert(self.model, jnp.bfloat16 if self.precision == "bf16" else jnp.float32)

        def init_params(key: jax.Array) -> Tree:
            waveform = jnp.zeros((1, self.audio.sample_rate))
            length = jnp.array([waveform.shape[1]])
            return network.init(rng.stream(key, "init"), waveform, length)["params"]

        def loss(
            params: Tree, batch: Batch, keys: NamedKeys, step: Array | None
        ) -> tuple[jax.Array, Metrics]:
            masked = mask_batch(keys("mask"), batch, encoder, self.masking).mask
            output = network.apply(
                {"params": params},
                batch.waveform,
                batch.length,
                masked,
                keys=None if step is None else keys("dropout"),
            )
            # Without padding, the published stem makes one frame less than there are hops.
            units = batch.units[:, : masked.shape[1]]
            return masked_unit_loss(output, units, masked, self.loss)

        task = masked_task(self, encoder, self.optim, init_params, loss)
        return dataclasses.replace(task, watches=self.collapse.watches())

    def prepare(self, folder: Path, load: Callable[[str], Any]) -> None:
        """Makes the units, see `jaxclone.train.targets.make_targets`."""
        data = [part for part in (self.data, self.valid) if isinstance(part, CropConfig)]
        make_targets(self, self.targets, self.model, data, folder / "targets", load)

    def bundles(self) -> tuple[str, ...]:
        """The bundles that this run learns from."""
        return (*super().bundles(), *filter(None, [self.targets.bundle]))
