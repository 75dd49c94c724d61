"""`TrainConfig`: the settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field, ValidationError

from cdrl_fast.precision import PrecisionName

Count = Annotated[int, Field(ge=1)]
Interval = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
_Class = TypeVar("_Class")


def checked(cls: type[_Class]) -> type[_Class]:
    """Make a frozen dataclass check its fields' names, types and ranges.

    An integer is accepted where a float is expected; NaN and infinities are not. The constructor's
    ValueError says which field, what was expected and what came.
    """
    options = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    config_class: Any = pydantic.dataclasses.dataclass(frozen=True, config=options)(cls)
    init = config_class.__init__

    @wraps(init)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            init(self, *args, **values)
        except ValidationError as error:
            raise ValueError(f"{cls.__name__}: {describe(error, config_class)}") from None

    config_class.__init__, config_class.__doc__ = __init__, cls.__doc__
    return config_class


def describe(error: ValidationError, cls: Any) -> str:
    """Return as one line which fields of ``cls`` are wrong, what was expected and what came."""
    lines = []
    for entry in error.errors():
        message, place, owner = entry["msg"], entry["loc"], cls
        if entry["type"] == "unexpected_keyword_argument":
            for name in place[:-1]:
                owner = owner.__dataclass_fields__[name].default_factory
            message = f"unknown; expected {', '.join(sorted(owner.__dataclass_fields__))}"
        if place:  # otherwise the input is the whole file
            message = f"{message}, got {entry['input']!r}"
        lines.append(": ".join([*map(str, place), message]))
    return "; ".join(lines)


@checked
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

    batch_size: Count = 256
    accumulate: Count = 1
    shard: bool = False
    energy_lr: Positive = 1e-4
    initializer_lr: Positive = 1e-5
    warmup: Interval = 10_000
    initializer_warmup_offset: Interval = 500
    clip: Positive = 1.0
    ema_decay: Share = 0.9999
    variance_reduction: bool = True
    label_drop: Share = 0.1
    flip: bool = False
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = 0
    precision: PrecisionName = "auto"
    recompute: Literal["nothing", "activations", "blocks"] = "activations"
    graph: Literal["auto", "off"] = "auto"
    patience: Interval = 3
    rollbacks: Interval = 3
    log_every: Count = 10
    preview_every: Interval = 0
    metrics_every: Interval = 0
    checkpoint_every: Interval = 1000
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 0.0
    keep: Count = 3
    watch: Literal["none", "tensorboard", "wandb"] = "none"
