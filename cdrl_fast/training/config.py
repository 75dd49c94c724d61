"""`TrainConfig`: how a model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cdrl_fast.precision import PrecisionName


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are those of the paper's CIFAR-10 run; on the command
    line, the recipe's.

    Attributes:
        batch_size: samples an iteration, of all processes together.
        accumulate: parts of a process's share that are computed one after the other, for less
            memory; the result is the whole batch's.
        shard: with several processes, each keeps only its part of the weights, gradients and
            optimiser state (FSDP2) instead of all of them (DDP).
        energy_lr, initializer_lr: learning rates of Adam (energy) and AdamW without decay.
        warmup: iterations of linear warm-up; 0 for none.
        initializer_warmup_offset: how far ahead the initializer's warm-up is.
        clip: gradient norm to which each network's gradient is clipped.
        ema_decay: decay of the averaged weights, ramped as (1 + n)/(10 + n).
        variance_reduction: draw x_{t-1} with the noise of x_t; otherwise from the posterior.
        label_drop: probability that a label is replaced by "no label".
        flip: mirror images at random.
        seed: of all noise and of the data's order.
        precision: of the Langevin chain, as in `Sampler`, and by autocast of the losses, where no
            kernels compute those in float32 (on CPUs, the library's networks for images); the
            weights keep the model's dtype. "auto" is "fp64" for a float64 model, else "bf16" where
            the processor multiplies it and the energy has kernels, else "fp32"; a resumed run
            keeps its own.
        recompute: what the library's networks compute again for their gradients instead of
            keeping it: "nothing"; the initializer's "activations", which cost little; or whole
            "blocks", for a quarter of the memory and a third more arithmetic.
        graph: "auto": on one GPU, for the library's own energies of images, all of an iteration up
            to its gradients is captured once as a CUDA graph and replayed; "off": it is not.
        patience: iterations in a row that may leave the finite numbers, or explode, and are
            skipped; one more, and training goes back to the last good checkpoint.
        rollbacks: how often it does; each time the learning rates are halved.
        log_every: iterations between lines of the log.
        preview_every, metrics_every, checkpoint_every: iterations between previews, metrics and
            checkpoints; 0 for none.
        checkpoint_minutes: minutes between checkpoints, besides; 0 for none.
        keep: checkpoints kept, the newest ones.
        watch: who is shown the run besides its log: "none", "tensorboard" (in the run's folder) or
            "wandb"; extras of the same names.

    Raises:
        ValueError: a value of another type, or out of range.

    Examples:
        >>> from cdrl_fast import TrainConfig
        >>> TrainConfig(batch_size=64, energy_lr=1e-3, warmup=500).initializer_lr
        1e-05
    """

    batch_size: int = 256
    accumulate: int = 1
    shard: bool = False
    energy_lr: float = 1e-4
    initializer_lr: float = 1e-5
    warmup: int = 10_000
    initializer_warmup_offset: int = 500
    clip: float = 1.0
    ema_decay: float = 0.9999
    variance_reduction: bool = True
    label_drop: float = 0.1
    flip: bool = False
    seed: int = 0
    precision: PrecisionName = "auto"
    recompute: Literal["nothing", "activations", "blocks"] = "activations"
    graph: Literal["auto", "off"] = "auto"
    patience: int = 3
    rollbacks: int = 3
    log_every: int = 10
    preview_every: int = 0
    metrics_every: int = 0
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 0.0
    keep: int = 3
    watch: Literal["none", "tensorboard", "wandb"] = "none"

    def __post_init__(self) -> None:
        check_field_types(self)
        for name in ("batch_size", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig: expected {name} >= 1, got {getattr(self, name)}")
        intervals = ("preview_every", "metrics_every", "checkpoint_every", "checkpoint_minutes")
        for name in ("warmup", "initializer_warmup_offset", "patience", "rollbacks", *intervals):
            if not getattr(self, name) >= 0:
                raise ValueError(f"TrainConfig: expected {name} >= 0, got {getattr(self, name)}")
        for name in ("energy_lr", "initializer_lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"TrainConfig: expected {name} > 0, got {getattr(self, name)}")
        if not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"TrainConfig: expected a seed of 64 bits, got {self.seed}")
        for name in ("label_drop", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"TrainConfig: expected 0 <= {name} < 1, got {getattr(self, name)}"
                )


def check_field_types(config: Any) -> None:
    """Raises ValueError unless every field of a dataclass holds what its annotation says.

    An integer serves as a number; NaN and infinities do not.
    """
    kinds = get_type_hints(type(config))
    for field in fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        if not _fits(value, kind):
            raise ValueError(
                f"{type(config).__name__}: expected {field.name} {_words(kind)}, got {value!r}"
            )


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin is UnionType:
        return any(_fits(value, part) for part in get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(part, get_args(kind)[0]) for part in value)
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        quoted = [f'"{part}"' for part in parts]
        return f"{', '.join(quoted[:-1])} or {quoted[-1]}"
    if origin is UnionType:
        return " or ".join(_words(part) for part in parts)
    if origin is tuple:
        return f"a list of {_words(parts[0])}"
    return {float: "a number", type(None): "null"}.get(kind, kind.__name__)
