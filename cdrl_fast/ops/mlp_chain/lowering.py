"""A program as the Triton room reads it: a table of operations on slots of memory, and weights.

Every operation makes one array x, tile by tile, for the samples of a block:

    x = (operand · weight + bias + row) · slope + first + second

whichever of these there are, and writes it, activation(x) for later products, and the activation's
slope at x for the way back. Maps forward and backward, sums and the head's gradient are all such
operations. A slot holds one array as long as it is needed, and then another.
"""

from __future__ import annotations

import math
import struct
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache

from cdrl_fast.ops.mlp_chain.program import IDENTITY, KINDS, Activation, Linear, Program

PAD, PAD_STATE = 32, 16
"""Features of arrays are multiples of this, the state's of less: products of it are narrow."""
NOTHING = -1
KEPT = ("nothing", "signs", "slopes")
"""How an activation's slope is kept: not at all, as one bit a feature, as a float32."""
FIELDS = (
    "depth",  # features of the operand, 0 where there is no product
    "width",  # features of x
    "single",  # whether the product is in float32 whatever the precision
    "operand",  # slot
    "weight",  # where (depth, width) numbers begin in the buffer of the product's dtype
    "bias",  # where it begins in the float32 buffer
    "row",  # first column of the rows
    "columns",  # how many of these there are
    "slope_kind",  # one of KEPT
    "slope",  # slot
    "slope_leak",  # slope of leaky_relu below zero, bits of a float32
    "first",  # slot
    "second",  # slot
    "plain",  # slot that x goes to
    "kind",  # of the activation, one of KINDS
    "leak",  # as slope_leak
    "result",  # slot that activation(x) goes to
    "result_single",  # whether that is float32 whatever the precision
    "kept_kind",  # one of KEPT
    "kept",  # slot that the slope goes to
)
_ABSENT = {
    **dict.fromkeys(FIELDS, 0),
    **dict.fromkeys(
        ("operand", "weight", "bias", "row", "slope", "first", "second", "plain", "result", "kept"),
        NOTHING,
    ),
}


@dataclass(frozen=True)
class Step:
    """An instruction without its numbers; ``bias`` is "static", a first column of rows, or None."""

    source: int
    target: int
    product: bool
    activation: Activation = IDENTITY
    bias: str | int | None = None


@dataclass(frozen=True)
class Shape:
    """What the schedule of a program depends on: all but the numbers in its tensors."""

    widths: tuple[int, ...]
    steps: tuple[Step, ...]
    activation: Activation


@dataclass(frozen=True)
class Piece:
    """A tensor of the program and its place in a buffer.

    Attributes:
        form: "forward" (in, out), "backward" (out, in) or "bias" of an instruction; "head"
            (width,), "column" (width, 1), which is the head too, or "constant" (1,).
        step: which instruction; -1 where it is of none.
        single: in the float32 buffer, or in that of the precision.
        begin, shape: place, and shape with padding.
    """

    form: str
    step: int
    single: bool
    begin: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """What the kernel is told.

    Attributes:
        table: a row of `FIELDS` an operation.
        pieces: what fills the buffers of weights.
        sizes: elements of the buffer of the precision, and of the float32 one.
        room: 4-byte words a sample of all slots.
        stride: features of the state, and of ∇f, with padding.
        state, gradient, value: slots of the state, of ∇f and of f, which may be NOTHING.
    """

    table: tuple[tuple[int, ...], ...]
    pieces: tuple[Piece, ...]
    sizes: tuple[int, int]
    workspace: int
    stride: int
    state: int
    gradient: int
    value: int


def shape_of(program: Program) -> Shape:
    """The program without its numbers; hashable."""
    steps = []
    for step in program.instructions:
        if isinstance(step, Linear):
            static = None if step.bias is None else "static"
            bias = step.bias.start if isinstance(step.bias, slice) else static
            steps.append(Step(step.source, step.target, True, step.activation, bias))
        else:
            steps.append(Step(step.source, step.target, False))
    return Shape(program.widths, tuple(steps), program.activation)


@lru_cache(maxsize=256)
def schedule(shape: Shape, half: bool, value: bool) -> Schedule:
    """The operations of one gradient.

    Args:
        half: whether products have 2-byte inputs, but for those that read the state or give its
            gradient.
        value: whether f is wanted as well.
    """
    return _Lowering(shape, half, value).schedule()


Name = tuple[str, int, Activation]
"""An array: what it is, of which buffer, and after which activation."""
Operation = dict[str, "int | Name"]


class _Lowering:
    """Lists operations on names, then gives each name a slot."""

    def __init__(self, shape: Shape, half: bool, value: bool) -> None:
        self._shape, self._half, self._value = shape, half, value
        self._last = len(shape.widths) - 1
        self._operations: list[Operation] = []
        self._pieces: list[Piece] = []
        self._sizes = [0, 0]
        self._words: dict[Name, int] = {}
        # Of a buffer's values or gradients: arrays that are yet to be added, and parts to come.
        self._pending: dict[Name, list[Name]] = defaultdict(list)
        self._parts: Counter[Name] = Counter()

    def schedule(self) -> Schedule:
        for step in self._shape.steps:
            self._parts[self._plain("value", step.target)] += 1
            self._parts[self._plain("gradient", step.source)] += 1
        self._parts[self._plain("gradient", self._last)] += 1
        self._forward()
        self._backward()
        if self._value:
            self._head()
        ends = [self._plain("value", 0), self._plain("gradient", 0)]
        ends += [self._plain("output", 0)] if self._value else []
        slots, workspace = _slots(self._operations, self._words, ends)
        table = tuple(
            tuple(
                slots[entry] if isinstance(entry, tuple) else entry
                for entry in ({**_ABSENT, **operation}[field] for field in FIELDS)
            )
            for operation in self._operations
        )
        places = [slots[name] for name in ends] + [NOTHING]
        sizes = (self._sizes[0], self._sizes[1])
        return Schedule(table, tuple(self._pieces), sizes, workspace, self._pad(0), *places[:3])

    def _forward(self) -> None:
        self._finish("value", 0, None)
        for number, step in enumerate(self._shape.steps):
            operation: Operation | None = None
            if step.product:
                single = self._single(step.source == 0)
                operation = {
                    **self._product(number, "forward", step.source, step.target, single),
                    "operand": self._operand("value", step.source, step.activation, single),
                }
                if isinstance(step.bias, int):
                    operation |= {"row": step.bias, "columns": self._shape.widths[step.target]}
                elif step.bias is not None:
                    operation["bias"] = self._piece("bias", number, True, self._pad(step.target))
            self._add("value", step.target, operation, self._plain("value", step.source))

    def _backward(self) -> None:
        head = self._piece("head", -1, True, self._pad(self._last))
        slope = self._slope(self._last, self._shape.activation)
        self._add("gradient", self._last, {"bias": head, **slope}, None)
        for number, step in reversed(list(enumerate(self._shape.steps))):
            operation: Operation | None = None
            if step.product:
                single = self._single(step.source == 0)
                operation = {
                    **self._product(number, "backward", step.target, step.source, single),
                    "operand": self._operand("gradient", step.target, IDENTITY, single),
                    **self._slope(step.source, step.activation),
                }
            self._add("gradient", step.source, operation, self._plain("gradient", step.target))

    def _head(self) -> None:
        depth = self._pad(self._last)
        self._words[self._plain("output", 0)] = PAD_STATE
        operation: Operation = {
            "depth": depth,
            "width": PAD_STATE,
            "single": 1,
            "operand": self._operand("value", self._last, self._shape.activation, True),
            "weight": self._piece("column", -1, True, depth, PAD_STATE),
            "bias": self._piece("constant", -1, True, PAD_STATE),
            "plain": self._plain("output", 0),
        }
        self._operations.append(operation)

    def _add(
        self, what: str, buffer: int, operation: Operation | None, source: Name | None
    ) -> None:
        """One more part of a buffer's values or gradients: a product, or the array ``source``."""
        name = self._plain(what, buffer)
        self._parts[name] -= 1
        complete, pending = not self._parts[name], self._pending[name]
        if operation is None:
            assert source is not None
            if len(pending) == 2:
                self._sum(name, buffer, {})
            pending.append(source)
            if not complete:
                return  # a later operation adds it on its way
            operation = {}
        self._sum(name, buffer, operation)
        if complete:
            del operation["plain"]
            self._finish(what, buffer, self._operations.pop())

    def _sum(self, name: Name, buffer: int, operation: Operation) -> None:
        """The operation and what is pending, which it replaces."""
        pending = self._pending[name]
        operation |= {"width": self._pad(buffer), "plain": name}
        operation |= dict(zip(("first", "second"), pending, strict=False))
        pending[:] = [name]
        self._operations.append(operation)

    def _finish(self, what: str, buffer: int, operation: Operation | None) -> None:
        """Writes a complete buffer in every form that is read; None where it stands there plain."""
        plain = self._plain(what, buffer)
        wanted, summed = self._readers(what, buffer)
        forms: list[Operation] = []
        for activation in dict.fromkeys(activation for activation, _ in wanted):
            kept = self._kept(what, buffer, activation)
            for single in dict.fromkeys(single for a, single in wanted if a == activation):
                result = {} if single is None else self._result(what, buffer, activation, single)
                if result or kept:
                    leak = {"kind": KINDS.index(activation.kind), "leak": _bits(activation.slope)}
                    forms.append({**leak, **result, **kept})
                kept = {}
        if operation is not None:
            if buffer == 0 or summed or len(forms) > 1 or (IDENTITY, True) in wanted:
                operation["plain"] = plain
            self._operations.append(operation | (forms.pop(0) if forms else {}))
        width = self._pad(buffer)
        self._operations += [{"width": width, "first": plain, **form} for form in forms]

    def _readers(self, what: str, buffer: int) -> tuple[list[tuple[Activation, bool | None]], bool]:
        """Activation and precision of the products' operands, None where there is none; and
        whether a sum reads the buffer."""
        wanted: list[tuple[Activation, bool | None]] = []
        summed = False
        for step in self._shape.steps:
            if buffer != (step.source if what == "value" else step.target):
                continue
            activation = step.activation if what == "value" else IDENTITY
            summed = summed or not step.product
            if step.product:
                wanted.append((activation, self._single(step.source == 0)))
        if what == "value" and buffer == self._last:
            wanted.append((self._shape.activation, True if self._value else None))
        return wanted, summed

    def _result(self, what: str, buffer: int, activation: Activation, single: bool) -> Operation:
        name = self._operand(what, buffer, activation, single)
        if name == self._plain(what, buffer):
            return {}
        return {"result": name, "result_single": int(single)}

    def _kept(self, what: str, buffer: int, activation: Activation) -> Operation:
        if what == "gradient" or activation == IDENTITY:
            return {}
        name, kind = self._slope_of(buffer, activation)
        return {"kept": name, "kept_kind": kind}

    def _slope(self, buffer: int, activation: Activation) -> Operation:
        if activation == IDENTITY:
            return {}
        name, kind = self._slope_of(buffer, activation)
        return {"slope": name, "slope_kind": kind, "slope_leak": _bits(activation.slope)}

    def _slope_of(self, buffer: int, activation: Activation) -> tuple[Name, int]:
        signs, width = activation.kind == "leaky_relu", self._pad(buffer)
        name = ("slope", buffer, activation)
        self._words[name] = -(-width // 32) if signs else width
        return name, KEPT.index("signs" if signs else "slopes")

    def _operand(self, what: str, buffer: int, activation: Activation, single: bool) -> Name:
        if single and activation == IDENTITY:
            return self._plain(what, buffer)
        name = (f"{what} {'single' if single else 'half'}", buffer, activation)
        self._words[name] = self._pad(buffer) // (1 if single else 2)
        return name

    def _product(self, step: int, form: str, ins: int, outs: int, single: bool) -> Operation:
        shape = (self._pad(ins), self._pad(outs))
        weight = self._piece(form, step, single, *shape)
        return {"depth": shape[0], "single": int(single), "weight": weight}

    def _piece(self, form: str, step: int, single: bool, *shape: int) -> int:
        begin = self._sizes[single]
        self._pieces.append(Piece(form, step, single, begin, shape))
        self._sizes[single] += -(-math.prod(shape) // PAD) * PAD
        return begin

    def _plain(self, what: str, buffer: int) -> Name:
        name = (what, buffer, IDENTITY)
        self._words.setdefault(name, self._pad(buffer))
        return name

    def _pad(self, buffer: int) -> int:
        # A sum adds arrays of one layout, the state's too.
        summed = any(not step.product and step.source == 0 for step in self._shape.steps)
        pad = PAD if buffer or summed else PAD_STATE
        return -(-self._shape.widths[buffer] // pad) * pad

    def _single(self, of_state: bool) -> bool:
        return of_state or not self._half


def _slots(
    operations: list[Operation], words: dict[Name, int], ends: list[Name]
) -> tuple[dict[Name, int], int]:
    """A place for each array, none of those needed together overlapping; and the words of all.

    The state and what is read after the last operation, ``ends``, are needed all the time.
    """
    life = {name: (0, len(operations)) for name in ends}
    for when, operation in enumerate(operations):
        for name in (entry for entry in operation.values() if isinstance(entry, tuple)):
            begin, end = life.get(name, (when, when))
            life[name] = min(begin, when), max(end, when)
    places: dict[Name, int] = {}
    for name, (begin, end) in sorted(life.items(), key=lambda item: item[1][0]):
        taken = sorted(
            (places[other], places[other] + words[other])
            for other in places
            if life[other][0] <= end and begin <= life[other][1]
        )
        place = 0
        for low, high in taken:
            if place + words[name] <= low:
                break
            place = max(place, high)
        places[name] = place
    return places, max(places[name] + words[name] for name in places)


def _bits(number: float) -> int:
    """The bits of a float32 as an integer."""
    (bits,) = struct.unpack("<i", struct.pack("<f", number))
    return int(bits)
