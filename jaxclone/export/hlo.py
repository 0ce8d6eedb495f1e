"""What a compiled program moves: through memory and between devices, loops counted in full.

Read from the text of the optimised module, the program of one device. XLA's own analysis takes the
body of a loop once, and says nothing of collectives.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# These name a buffer without touching what is in it, or belong to an operation that began before.
_FREE = {
    "after-all",
    "async-done",
    "async-start",
    "async-update",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "domain",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "optimization-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_FREE_TARGETS = ("AllocateBuffer", "AsyncCollective", "ConcatBitcast", "AssumeGatherIndicesInBound")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|called_computations|branch_computations)=(\{[^}]*\}|%[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = shape op(operands), attributes`."""

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    root: bool


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of communication of a step.

    Attributes:
        kind: of `COLLECTIVES`.
        group: devices that take part together.
        crossing: whether a group reaches over several slices.
        times: it is done in a step.
        bytes: of its whole result (of its operand for all-reduce, reduce-scatter and all-to-all) on
            a device, over all times.
    """

    kind: str
    group: int
    crossing: bool
    times: int
    bytes: float

    @property
    def wire_bytes(self) -> float:
        """What a device sends, by the ring algorithms."""
        if self.kind == "collective-permute":
            return self.bytes
        part = (self.group - 1) / self.group
        return self.bytes * part * (2 if self.kind == "all-reduce" else 1)


class Module:
    """A parsed module.

    Attributes:
        unknown_loops: loops whose number of turns is not known; they count once.
    """

    def __init__(self, text: str):
        self.computations, self._entry = _parse(text)
        self.unknown_loops = 0
        self._times, self._fused = self._count()

    def collectives(self, slice_of: Sequence[int] = ()) -> list[Collective]:
        """The communication of a step, the most bytes first.

        Args:
            slice_of: the slice that each device of the mesh is in; () for a single slice.
        """
        done: dict[tuple[str, str], tuple[float, float, int, bool]] = {}
        for name, computation in self.computations.items():
            for instruction in computation.values():
                kind = instruction.op.removesuffix("-start")
                if kind not in COLLECTIVES or not self._times[name]:
                    continue
                groups = _groups(instruction.attributes)
                size = len(groups[0]) if groups else max(1, len(slice_of))
                moved = sum(_bytes(computation[x].shape) for x in instruction.operands)
                moved *= size if kind == "all-gather" else 1
                crossing = any(
                    len({slice_of[i] for i in group}) > 1 for group in groups if slice_of
                )
                # Of one that is split over several fusions, each has a copy with the same number.
                channel = re.search(r"channel_id=(\d+)", instruction.attributes)
                key = (kind, channel[1] if channel else f"{name}/{instruction.name}")
                times = max(self._times[name], done[key][0] if key in done else 0.0)
                done[key] = (times, moved, size, crossing)
        total: dict[tuple[str, int, bool], list[float]] = collections.defaultdict(
            lambda: [0.0, 0.0]
        )
        for (kind, _), (times, moved, size, crossing) in done.items():
            if size > 1:
                total[kind, size, crossing][0] += times
                total[kind, size, crossing][1] += times * moved
        found = [Collective(*key, round(times), moved) for key, (times, moved) in total.items()]
        return sorted(found, key=lambda item: -item.bytes)

    def traffic(self) -> float:
        """Bytes that a step reads from and writes to the memory of a device.

        What XLA keeps on the chip does not count; of a slice that is read from or written to a
        larger array in place, the slice.
        """
        total = 0.0
        for name, times in self._times.items():
            if times and name not in self._fused:
                computation = self.computations[name]
                total += times * sum(self._moved(x, computation) for x in computation.values())
        return total

    def _count(self) -> tuple[dict[str, float], set[str]]:
        """How often each computation is run, and which are part of a fusion."""
        times = dict.fromkeys(self.computations, 0.0)
        times[self._entry] = 1.0
        fused: set[str] = set()
        for name in reversed(self.computations):  # callers follow what they call
            for instruction in self.computations[name].values():
                if instruction.op in ("async-done", "async-update") or not times[name]:
                    continue
                if instruction.op == "while":
                    condition, body = (
                        re.search(rf"{role}=%([\w.\-]+)", instruction.attributes)[1]  # type: ignore[index]
                        for role in ("condition", "body")
                    )
                    turns = self._turns(instruction, name, condition, body)
                    times[condition] += times[name] * (turns + 1)
                    times[body] += times[name] * turns
                for called in _CALLED.findall(instruction.attributes):
                    for callee in _REFERENCE.findall(called):
                        if callee in times:
                            times[callee] += times[name]
                            if instruction.op not in ("call", "conditional"):
                                fused.add(callee)
        return times, fused

    def _turns(self, loop: Instruction, caller: str, condition: str, body: str) -> float:
        """How often a loop goes round."""
        known = re.search(r'known_trip_count"?[:=]\{"n":"(\d+)"', loop.attributes)
        if known:
            return float(known[1])
        test = next(x for x in self.computations[condition].values() if x.root)
        held = [self.computations[condition].get(x) for x in test.operands]
        if test.op == "compare" and "direction=LT" in test.attributes and len(held) == 2:
            counter, limit = held
            if counter and limit and counter.op == "get-tuple-element" and limit.op == "constant":
                index = int(re.search(r"index=(\d+)", counter.attributes)[1])  # type: ignore[index]
                start = self._start(loop, caller, index)
                return float(max(0, -((start - int(limit.literal)) // self._step(body, index))))
        self.unknown_loops += 1
        return 1.0

    def _start(self, loop: Instruction, caller: str, index: int) -> int:
        """The first value of a loop's counter: 0 where it is not told."""
        computation = self.computations[caller]
        state = computation.get(loop.operands[0])
        if state is None or state.op != "tuple":
            return 0
        value: Instruction | None = computation.get(state.operands[index])
        while value is not None and value.op in ("copy", "bitcast", "convert"):
            value = computation.get(value.operands[0])
        literal = value.literal if value is not None and value.op == "constant" else ""
        return int(literal) if literal.lstrip("-").isdecimal() else 0

    def _step(self, body: str, index: int) -> int:
        """What a turn adds to its counter: 1 where it is not told."""
        computation = self.computations[body]
        state = next(x for x in computation.values() if x.root)
        if state.op == "tuple":
            value = computation.get(state.operands[index])
            if value is not None and value.op == "add":
                for name in value.operands:
                    operand = computation.get(name)
                    if operand is not None and operand.op == "constant":
                        return max(1, int(operand.literal))
        return 1

    def _moved(self, instruction: Instruction, computation: Computation) -> float:
        """Bytes of memory that an instruction reads and writes."""
        op, operands = instruction.op, [computation[x].shape for x in instruction.operands]
        if op in _FREE or op.endswith("-done"):
            return 0.0
        if op == "custom-call" and any(name in instruction.attributes for name in _FREE_TARGETS):
            return 0.0
        if op in ("dynamic-slice", "slice", "gather"):
            return 2 * _bytes(instruction.shape, memory=True)
        if op in ("dynamic-update-slice", "scatter"):
            return 2 * _bytes(operands[-1 if op == "scatter" else 1], memory=True)
        if op.endswith("-start"):  # the result is (written, read, ...), whose parts alias
            first = _ARRAY.search(instruction.shape)
            written = _bytes(first[0], memory=True) if first else 0.0
            return written + sum(_bytes(shape, memory=True) for shape in operands)
        if op == "fusion":
            return self._fusion(instruction, operands)
        return _bytes(instruction.shape, memory=True) + sum(
            _bytes(shape, memory=True) for shape in operands
        )

    def _fusion(self, instruction: Instruction, operands: Sequence[str]) -> float:
        """Bytes that a fusion moves: of what it slices or updates in place, the slices."""
        callee = self._callee(instruction)
        moved = 0.0
        for inner in callee.values():
            if inner.op == "parameter":
                whole = _bytes(operands[int(inner.literal)], memory=True)
                part = self._read(inner.name, callee) if whole else 0.0
                moved += whole if part is None else min(whole, part)
        arrays = _ARRAY.finditer(instruction.shape)
        for written, array in zip(self._written(callee), arrays):
            whole = _bytes(array[0], memory=True)
            moved += whole if written is None else min(whole, written)
        return moved

    def _callee(self, instruction: Instruction) -> Computation:
        return self.computations[_REFERENCE.findall(_CALLED.search(instruction.attributes)[1])[0]]  # type: ignore[index]

    def _read(self, name: str, computation: Computation) -> float | None:
        """Bytes read of a value within a fusion; None when all of it is."""
        total = 0.0
        for user in computation.values():
            for place in [i for i, operand in enumerate(user.operands) if operand == name]:
                if user.op == "bitcast":
                    part = self._read(user.name, computation)
                elif user.op in ("dynamic-slice", "slice"):
                    part = _bytes(user.shape)
                elif user.op == "dynamic-update-slice" and place == 0:
                    part = 0.0
                elif user.op == "fusion":
                    inner = self._callee(user)
                    taken = next(
                        x.name
                        for x in inner.values()
                        if x.op == "parameter" and int(x.literal) == place
                    )
                    part = self._read(taken, inner)
                elif user.op == "tuple" and user.root:
                    part = 0.0  # handed through
                else:
                    part = None
                if part is None:
                    return None
                total += part
        return total

    def _written(self, computation: Computation) -> list[float | None]:
        """Bytes that each result of a fusion writes; None when all of it."""
        root = next(x for x in computation.values() if x.root)
        parts = [computation[x] for x in root.operands] if root.op == "tuple" else [root]
        written: list[float | None] = []
        for part in parts:
            while part.op == "bitcast":
                part = computation[part.operands[0]]
            if part.op == "dynamic-update-slice":
                written.append(_bytes(computation[part.operands[1]].shape))
            elif part.op == "fusion":
                written += self._written(self._callee(part))
            else:
                written.append(0.0 if part.op == "parameter" else None)
        return written


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation = {}
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        else:
            match = _INSTRUCTION.match(line)
            if match:
                instruction = _instruction(match[2], match[3], root=bool(match[1]))
                current[instruction.name] = instruction
    return computations, entry


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    begin = rest.index("(")
    end = _closing(rest, begin)
    inside = rest[begin + 1 : end]
    operands = () if rest.startswith("constant") else tuple(_REFERENCE.findall(inside))
    return Instruction(name, shape, rest[:begin], operands, inside, rest[end + 1 :], root)


def _closing(text: str, begin: int) -> int:
    """Where the parenthesis that opens at `begin` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, begin):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    return len(text) - 1


@functools.lru_cache(maxsize=65536)
def _bytes(shape: str, memory: bool = False) -> float:
    """Bytes of the arrays of a shape; with `memory`, of those that are not kept on the chip."""
    total = 0.0
    for kind, dimensions, layout in _ARRAY.findall(shape):
        space = re.search(r"S\((\d+)\)", layout)
        if not memory or space is None or space[1] == "0":
            total += math.prod(map(int, filter(None, dimensions.split(",")))) * _width(kind)
    return total


def _width(kind: str) -> float:
    """Bytes of a number: of `bf16`, `f8e4m3fn`, `s32`, `pred`."""
    digits = re.match(r"[a-z]+(\d+)", kind)
    return int(digits[1]) / 8 if digits else 1.0 if kind == "pred" else 0.0


def _groups(attributes: str) -> list[tuple[int, ...]]:
    """The devices, as places in the mesh, that communicate with each other."""
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes)
    if pairs:
        return list(_tuples(pairs[1]))
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", attributes)
    if listed:
        return list(_tuples(listed[1]))
    compact = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if compact:
        out, sizes = (_integers(compact[i]) for i in (1, 2))
        devices = np.arange(math.prod(sizes)).reshape(sizes)
        if compact[3]:
            devices = devices.transpose(_integers(compact[3]))
        return [tuple(row) for row in devices.reshape(out[0], -1).tolist()]
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if named:
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        names = list(axes)
        along = [names.index(name) for name in re.findall(r"'([^']+)'", named[2]) if name in axes]
        devices = np.arange(math.prod(axes.values())).reshape(list(axes.values()))
        devices = np.moveaxis(devices, along, range(-len(along), 0))
        size = math.prod(axes[names[i]] for i in along)
        return [tuple(row) for row in devices.reshape(-1, size).tolist()]
    return []


def _tuples(text: str) -> Iterable[tuple[int, ...]]:
    return (tuple(_integers(group)) for group in re.findall(r"\{([\d,]+)\}", text))


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
