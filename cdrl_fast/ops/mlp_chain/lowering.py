"""Lowering of a program for the Triton kernel: a table of operations on slots of memory.

Every operation computes one array x, tile by tile, for a block of samples:

    x = (operand · weight + bias + row) · slope + addend_1 + addend_2

without the terms that are absent. It writes x, activation(x) for later products, and the
activation's slope at x for the backward pass, each only if it is read. Linear maps forward and
backward, sums and the head's gradient are all such operations. A slot contains one array until its
last use, and then another.
"""

from __future__ import annotations

import math
import struct
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache

from cdrl_fast.ops.mlp_chain.program import IDENTITY, KINDS, Activation, Linear, Program

PAD, PAD_STATE = 32, 16
"""Widths of arrays are multiples of PAD, the state's of PAD_STATE, for narrow products."""
ABSENT = -1
SLOPE_FORMS = ("none", "signs", "values")
"""Storage of an activation's slopes: none, one bit per feature, or one float32 per feature."""
FIELDS = (
    "depth",  # features of the operand, 0 without a product
    "width",  # features of x
    "fp32",  # whether the product is in float32 in every precision
    "operand",  # slot
    "weight",  # offset of the (depth, width) elements in the buffer of the product's dtype
    "bias",  # offset in the float32 buffer
    "row",  # first column of the rows
    "row_columns",  # number of columns of the rows
    "slope_form",  # index in SLOPE_FORMS
    "slope",  # slot
    "slope_leak",  # slope of leaky_relu below zero, bits of a float32
    "addend_1",  # slot
    "addend_2",  # slot
    "x",  # slot that x is written to
    "kind",  # of the activation, index in KINDS
    "leak",  # its slope below zero, as slope_leak
    "activated",  # slot that activation(x) is written to
    "activated_fp32",  # whether activation(x) is float32 in every precision
    "slope_out_form",  # index in SLOPE_FORMS
    "slope_out",  # slot that the slope is written to
)
_DEFAULTS = {
    **dict.fromkeys(FIELDS, 0),
    **dict.fromkeys(
        ("operand", "weight", "bias", "row", "slope", "addend_1", "addend_2", "x", "activated",
         "slope_out"),
        ABSENT,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class InstructionShape:
    """An instruction without its tensors; ``bias`` is "static", a first column of rows, or None."""

    source: int
    target: int
    product: bool
    activation: Activation = IDENTITY
    bias: str | int | None = None


@dataclass(frozen=True)
class ProgramShape:
    """A program without the elements of its tensors: all that its schedule depends on."""

    widths: tuple[int, ...]
    instructions: tuple[InstructionShape, ...]
    activation: Activation


@dataclass(frozen=True)
class BufferEntry:
    """A tensor of the program and its position in a buffer of weights.

    Attributes:
        form: "forward" (in, out), "backward" (out, in) or "bias" of an instruction; "head"
            (width,), "column", the head as (width, 1), or "constant" (1,).
        instruction: index of the instruction; ABSENT for the head and the constant.
        fp32: whether it is in the float32 buffer, not in that of the precision.
        offset: first element in the buffer.
        shape: shape with padding.
    """

    form: str
    instruction: int
    fp32: bool
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """The operations of one gradient, and the layout of weights and slots.

    Attributes:
        table: one row of `FIELDS` per operation.
        entries: contents of the buffers of weights.
        buffer_sizes: elements of the buffer of the precision, and of the float32 one.
        workspace: size of all slots per sample, in units of 4 bytes.
        stride: features of the state, and of ∇f, with padding.
        state, gradient, value: slots of the state, of ∇f and of f, the last may be ABSENT.
    """

    table: tuple[tuple[int, ...], ...]
    entries: tuple[BufferEntry, ...]
    buffer_sizes: tuple[int, int]
    workspace: int
    stride: int
    state: int
    gradient: int
    value: int


def program_shape(program: Program) -> ProgramShape:
    """Return the program without the elements of its tensors; hashable."""
    instructions = []
    for instruction in program.instructions:
        source, target = instruction.source, instruction.target
        if isinstance(instruction, Linear):
            static = None if instruction.bias is None else "static"
            bias = instruction.bias.start if isinstance(instruction.bias, slice) else static
            instructions.append(
                InstructionShape(source, target, True, instruction.activation, bias)
            )
        else:
            instructions.append(InstructionShape(source, target, False))
    return ProgramShape(program.widths, tuple(instructions), program.activation)


@lru_cache(maxsize=256)
def schedule(shape: ProgramShape, half: bool, value: bool) -> Schedule:
    """Return the operations of one gradient.

    Args:
        shape: the program.
        half: whether products have 2-byte inputs, except those that read the state or compute its
            gradient.
        value: whether to compute f, too.
    """
    return _Lowering(shape, half, value).schedule()


Array = tuple[str, int, Activation]
"""Key of an array: its quantity ("value", "gradient", …), its buffer, the activation applied."""
Operation = dict[str, "int | Array"]


class _Lowering:
    """Lists operations on arrays, then assigns a slot to each array."""

    def __init__(self, shape: ProgramShape, half: bool, value: bool) -> None:
        self._shape, self._half, self._value = shape, half, value
        self._last = len(shape.widths) - 1
        self._operations: list[Operation] = []
        self._entries: list[BufferEntry] = []
        self._buffer_sizes = [0, 0]
        self._array_sizes: dict[Array, int] = {}
        # For a buffer's values or gradients: arrays not added yet, and number of parts to come.
        self._pending: dict[Array, list[Array]] = defaultdict(list)
        self._parts: Counter[Array] = Counter()

    def schedule(self) -> Schedule:
        for instruction in self._shape.instructions:
            self._parts[self._array("value", instruction.target)] += 1
            self._parts[self._array("gradient", instruction.source)] += 1
        self._parts[self._array("gradient", self._last)] += 1
        self._forward()
        self._backward()
        if self._value:
            self._output()
        permanent = [self._array("value", 0), self._array("gradient", 0)]
        permanent += [self._array("output", 0)] if self._value else []
        slots, workspace = _slots(self._operations, self._array_sizes, permanent)
        table = tuple(
            tuple(
                slots[entry] if isinstance(entry, tuple) else entry
                for entry in ({**_DEFAULTS, **operation}[field] for field in FIELDS)
            )
            for operation in self._operations
        )
        ends = [slots[array] for array in permanent] + [ABSENT]
        sizes = (self._buffer_sizes[0], self._buffer_sizes[1])
        return Schedule(table, tuple(self._entries), sizes, workspace, self._width(0), *ends[:3])

    def _forward(self) -> None:
        self._complete("value", 0, None)
        for index, step in enumerate(self._shape.instructions):
            operation: Operation | None = None
            if step.product:
                fp32 = self._is_fp32(step.source == 0)
                operation = {
                    **self._product(index, "forward", step.source, step.target, fp32),
                    "operand": self._operand("value", step.source, step.activation, fp32),
                }
                if isinstance(step.bias, int):
                    operation |= {"row": step.bias, "row_columns": self._shape.widths[step.target]}
                elif step.bias is not None:
                    operation["bias"] = self._entry("bias", index, True, self._width(step.target))
            self._add_part("value", step.target, operation, self._array("value", step.source))

    def _backward(self) -> None:
        head = self._entry("head", ABSENT, True, self._width(self._last))
        slope = self._slope(self._last, self._shape.activation)
        self._add_part("gradient", self._last, {"bias": head, **slope}, None)
        for index, step in reversed(list(enumerate(self._shape.instructions))):
            operation: Operation | None = None
            if step.product:
                fp32 = self._is_fp32(step.source == 0)
                operation = {
                    **self._product(index, "backward", step.target, step.source, fp32),
                    "operand": self._operand("gradient", step.target, IDENTITY, fp32),
                    **self._slope(step.source, step.activation),
                }
            self._add_part("gradient", step.source, operation, self._array("gradient", step.target))

    def _output(self) -> None:
        """Append the operation that computes f."""
        depth = self._width(self._last)
        self._array_sizes[self._array("output", 0)] = PAD_STATE
        operation: Operation = {
            "depth": depth,
            "width": PAD_STATE,
            "fp32": 1,
            "operand": self._operand("value", self._last, self._shape.activation, True),
            "weight": self._entry("column", ABSENT, True, depth, PAD_STATE),
            "bias": self._entry("constant", ABSENT, True, PAD_STATE),
            "x": self._array("output", 0),
        }
        self._operations.append(operation)

    def _add_part(
        self, quantity: str, buffer: int, operation: Operation | None, source: Array | None
    ) -> None:
        """Add a part to a buffer's values or gradients: a product, or the array ``source``."""
        array = self._array(quantity, buffer)
        self._parts[array] -= 1
        complete, pending = not self._parts[array], self._pending[array]
        if operation is None:
            assert source is not None
            if len(pending) == 2:
                self._append(array, buffer, {})
            pending.append(source)
            if not complete:
                return  # a later operation adds it
            operation = {}
        self._append(array, buffer, operation)
        if complete:
            del operation["x"]
            self._complete(quantity, buffer, self._operations.pop())

    def _append(self, array: Array, buffer: int, operation: Operation) -> None:
        """Append the operation, which adds the pending arrays and replaces them."""
        pending = self._pending[array]
        operation |= {"width": self._width(buffer), "x": array}
        operation |= dict(zip(("addend_1", "addend_2"), pending, strict=False))
        pending[:] = [array]
        self._operations.append(operation)

    def _complete(self, quantity: str, buffer: int, operation: Operation | None) -> None:
        """Write a complete buffer in every form that is read.

        ``operation`` computes the buffer; None if it is already in its slot.
        """
        array = self._array(quantity, buffer)
        operands, summed = self._readers(quantity, buffer)
        forms: list[Operation] = []
        for activation in dict.fromkeys(activation for activation, _ in operands):
            slope_out = self._slope_out(quantity, buffer, activation)
            for fp32 in dict.fromkeys(fp32 for a, fp32 in operands if a == activation):
                activated = (
                    {} if fp32 is None else self._activated(quantity, buffer, activation, fp32)
                )
                if activated or slope_out:
                    kind = {"kind": KINDS.index(activation.kind), "leak": _bits(activation.slope)}
                    forms.append({**kind, **activated, **slope_out})
                slope_out = {}
        if operation is not None:
            if buffer == 0 or summed or len(forms) > 1 or (IDENTITY, True) in operands:
                operation["x"] = array
            self._operations.append(operation | (forms.pop(0) if forms else {}))
        width = self._width(buffer)
        self._operations += [{"width": width, "addend_1": array, **form} for form in forms]

    def _readers(
        self, quantity: str, buffer: int
    ) -> tuple[list[tuple[Activation, bool | None]], bool]:
        """Return the products' operands and whether a sum reads the buffer.

        An operand is its activation and whether it is float32, None if only the slope is read.
        """
        operands: list[tuple[Activation, bool | None]] = []
        summed = False
        for step in self._shape.instructions:
            if buffer != (step.source if quantity == "value" else step.target):
                continue
            activation = step.activation if quantity == "value" else IDENTITY
            summed = summed or not step.product
            if step.product:
                operands.append((activation, self._is_fp32(step.source == 0)))
        if quantity == "value" and buffer == self._last:
            operands.append((self._shape.activation, True if self._value else None))
        return operands, summed

    def _activated(
        self, quantity: str, buffer: int, activation: Activation, fp32: bool
    ) -> Operation:
        array = self._operand(quantity, buffer, activation, fp32)
        if array == self._array(quantity, buffer):
            return {}
        return {"activated": array, "activated_fp32": int(fp32)}

    def _slope_out(self, quantity: str, buffer: int, activation: Activation) -> Operation:
        if quantity == "gradient" or activation == IDENTITY:
            return {}
        array, form = self._slope_array(buffer, activation)
        return {"slope_out": array, "slope_out_form": form}

    def _slope(self, buffer: int, activation: Activation) -> Operation:
        if activation == IDENTITY:
            return {}
        array, form = self._slope_array(buffer, activation)
        return {"slope": array, "slope_form": form, "slope_leak": _bits(activation.slope)}

    def _slope_array(self, buffer: int, activation: Activation) -> tuple[Array, int]:
        signs, width = activation.kind == "leaky_relu", self._width(buffer)
        array = ("slope", buffer, activation)
        self._array_sizes[array] = -(-width // 32) if signs else width
        return array, SLOPE_FORMS.index("signs" if signs else "values")

    def _operand(self, quantity: str, buffer: int, activation: Activation, fp32: bool) -> Array:
        if fp32 and activation == IDENTITY:
            return self._array(quantity, buffer)
        array = (f"{quantity} {'fp32' if fp32 else 'half'}", buffer, activation)
        self._array_sizes[array] = self._width(buffer) // (1 if fp32 else 2)
        return array

    def _product(self, instruction: int, form: str, ins: int, outs: int, fp32: bool) -> Operation:
        shape = (self._width(ins), self._width(outs))
        weight = self._entry(form, instruction, fp32, *shape)
        return {"depth": shape[0], "fp32": int(fp32), "weight": weight}

    def _entry(self, form: str, instruction: int, fp32: bool, *shape: int) -> int:
        """Append a tensor to a buffer of weights, and return its offset."""
        offset = self._buffer_sizes[fp32]
        self._entries.append(BufferEntry(form, instruction, fp32, offset, shape))
        self._buffer_sizes[fp32] += -(-math.prod(shape) // PAD) * PAD
        return offset

    def _array(self, quantity: str, buffer: int) -> Array:
        """Return the key of a buffer's values or gradients themselves."""
        array = (quantity, buffer, IDENTITY)
        self._array_sizes.setdefault(array, self._width(buffer))
        return array

    def _width(self, buffer: int) -> int:
        """Return the number of features with padding."""
        # A sum adds arrays of equal layout, so a summed state has the padding of the others.
        summed = any(not step.product and step.source == 0 for step in self._shape.instructions)
        pad = PAD if buffer or summed else PAD_STATE
        return -(-self._shape.widths[buffer] // pad) * pad

    def _is_fp32(self, reads_state: bool) -> bool:
        return reads_state or not self._half


def _slots(
    operations: list[Operation], sizes: dict[Array, int], permanent: list[Array]
) -> tuple[dict[Array, int], int]:
    """Return a slot for each array, and the size of all slots together.

    Arrays that are needed at the same time do not overlap. ``permanent`` arrays, the state and what
    is read after the last operation, are needed all the time.
    """
    lifetimes = {array: (0, len(operations)) for array in permanent}
    for time, operation in enumerate(operations):
        for array in (entry for entry in operation.values() if isinstance(entry, tuple)):
            begin, end = lifetimes.get(array, (time, time))
            lifetimes[array] = min(begin, time), max(end, time)
    slots: dict[Array, int] = {}
    for array, (begin, end) in sorted(lifetimes.items(), key=lambda item: item[1][0]):
        occupied = sorted(
            (slots[other], slots[other] + sizes[other])
            for other in slots
            if lifetimes[other][0] <= end and begin <= lifetimes[other][1]
        )
        slot = 0
        for low, high in occupied:
            if slot + sizes[array] <= low:
                break
            slot = max(slot, high)
        slots[array] = slot
    return slots, max(slots[array] + sizes[array] for array in slots)


def _bits(number: float) -> int:
    """Return the bits of a float32 as an integer."""
    (bits,) = struct.unpack("<i", struct.pack("<f", number))
    return int(bits)
