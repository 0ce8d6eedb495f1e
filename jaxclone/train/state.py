"""What a run is at one step: everything that a checkpoint holds."""

from __future__ import annotations

from flax import struct

from jaxclone.types import Tree


class ModelState(struct.PyTreeNode):
    """One set of parameters and its optimiser.

    Attributes:
        params: what is optimised.
        opt_state: of the optimiser.
        variables: other collections of the model, which a step advances without a gradient.
    """

    params: Tree
    opt_state: Tree
    variables: Tree = struct.field(default_factory=dict)


class TrainState(struct.PyTreeNode):
    """A run that optimises one set of parameters.

    Attributes:
        step: i32[] updates done.
        key: the root random key of the run; streams are derived, it never changes.
        model: what is trained.
        frozen: parameters by model name that are used and not trained; {} for none.
    """

    step: Tree
    key: Tree
    model: ModelState
    frozen: Tree


class GanState(struct.PyTreeNode):
    """A run with a generator and a discriminator, each with its own optimiser.

    Attributes:
        step: i32[] batches seen.
        key: the root random key of the run.
        generator: what speaks.
        discriminator: what judges it.
        ema: the mean of the generator's parameters over the last steps; {} where none is kept.
        frozen: parameters by model name that are used and not trained; {} for none.
    """

    step: Tree
    key: Tree
    generator: ModelState
    discriminator: ModelState
    ema: Tree = struct.field(default_factory=dict)
    frozen: Tree = struct.field(default_factory=dict)
