"""`TrainConfig`: the settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cdrl_fast.choices import PrecisionName


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    The defaults are those of the paper's CIFAR-10 run; on the command line, those of the recipe.

    Attributes:
        batch_size: samples per iteration, over all processes together.
        accumulate: micro-batches per process and iteration, computed one after the other to save
            memory; the gradients are those of the full batch.
        shard: with several processes, each process keeps only its part of the weights, gradients
            and optimizer state (FSDP2) instead of all of them (DDP).
        energy_lr: learning rate of the energy's Adam.
        initializer_lr: learning rate of the initializer's AdamW, which has no weight decay.
        warmup: iterations over which the learning rates rise linearly; 0 for none.
        initializer_warmup_offset: iterations by which the initializer's warm-up is ahead of the
            energy's.
        clip: largest gradient norm of each network; a larger gradient is scaled down to it.
        ema_decay: decay of the averaged weights (EMA); at update n the decay is the smaller of this
            and (1 + n)/(10 + n).
        variance_reduction: draw x_{t-1} with the noise of x_t; otherwise from the posterior
            q(x_{t-1} | x_t, x_0).
        label_drop: probability that a label is replaced by "no label".
        flip: mirror each image with probability 1/2.
        seed: seed of all noise and of the data's order.
        precision: precision of the Langevin chain, as in `Sampler`, and of the losses by autocast.
            The losses stay in float32 where the library has kernels for them: for its own image
            networks on CPUs. The weights keep the model's dtype. "auto" is "fp64" for a float64
            model, else "bf16" where the processor multiplies bfloat16 and the energy has kernels,
            else "fp32"; a resumed run keeps its precision.
        recompute: what the library's networks recompute in the backward pass to save memory:
            with "nothing", all is kept; "activations" are the initializer's, at a low cost;
            complete "blocks" take a quarter of the memory and a third more arithmetic.
        graph: "auto" captures an iteration, up to its gradients, as one CUDA graph and replays it
            where that is possible: on one GPU, for the library's own image networks. "off" does
            not.
        patience: bad iterations in a row that are skipped; after one more, training goes back to
            the last good checkpoint. An iteration is bad if a value becomes non-finite (NaN or Inf)
            or a gradient explodes.
        rollbacks: how often training may go back to a checkpoint; each time halves the learning
            rates.
        log_every: iterations between two lines of the log.
        preview_every: iterations between two previews; 0 for none.
        metrics_every: iterations between two evaluations of the metrics; 0 for none.
        checkpoint_every: iterations between two checkpoints; 0 for none.
        checkpoint_minutes: minutes between two checkpoints, in addition to checkpoint_every; 0 for
            none.
        keep: number of checkpoints to keep; older ones are deleted.
        watch: where the run is shown besides its log: "none", "tensorboard" (event files in the
            run's folder) or "wandb" (Weights & Biases); each needs the extra of the same name.

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
    """Check that every field of a dataclass has a value of its annotated type.

    An integer is accepted where a float is expected; NaN and infinities are not.

    Raises:
        ValueError: a value of another type; the message names the field.
    """
    annotations = get_type_hints(type(config))
    for field in fields(config):
        value, annotation = getattr(config, field.name), annotations[field.name]
        if not _matches(value, annotation):
            raise ValueError(
                f"{type(config).__name__}: expected {field.name} to be {_describe(annotation)}, "
                f"got {value!r}"
            )


def _matches(value: Any, annotation: Any) -> bool:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return value in parts
    if origin is UnionType:
        return any(_matches(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(item, parts[0]) for item in value)
    if isinstance(value, bool):
        return annotation is bool
    if annotation is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, annotation)


def _describe(annotation: Any) -> str:
    """Return an annotation as words for a message."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        quoted = [f'"{part}"' for part in parts]
        return f"{', '.join(quoted[:-1])} or {quoted[-1]}"
    if origin is UnionType:
        return " or ".join(_describe(part) for part in parts)
    if origin is tuple:
        return f"a list of {_describe(parts[0])}"
    return {float: "a number", type(None): "null"}.get(annotation, annotation.__name__)
