"""`SampleRequest`: the options of sampling, checked once and passed on as one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from cdrl_fast.errors import check_integer

if TYPE_CHECKING:
    from cdrl_fast.model.cdrl import Label
    from cdrl_fast.model.schedule import Steps

ObservationNoise = Literal["shared", "fresh"]

BATCH_SIZE = 1024
MAX_CORRECTORS = 2**15 - 1


class SampleOptions(TypedDict, total=False):
    """The keyword arguments of `Sampler.sample`; `SampleRequest` describes them."""

    seed: int
    steps: Steps
    label: Label
    guidance: float
    first_sample: int
    batch_size: int | None
    denoise_scale: float
    correctors: int
    metropolis: bool
    progress: bool


@dataclass(frozen=True, eq=False)
class SampleRequest:
    """A request for ``n`` samples; `Sampler.run` draws them.

    Args:
        n: number of samples, 0 or more.
        seed: 64-bit integer. The same seed gives the same samples.
        steps: Langevin steps per level: None (as in training), an int for all levels, one int
            for each level 1 … T, a `StepPlan`, or "tuned" (the step plan that is saved with the
            (first) model). With K' steps in place of K, a step's noise variance is K/K' times
            that of training.
        label: class number 1 … num_classes or class name, one for all samples or a sequence of
            ``n``. None, or 0, samples without a class.
        guidance: weight w of classifier-free guidance. Chains follow
            (1 + w) f(·|label) - w f(·|no label); 0 is no guidance.
        first_sample: index of the first sample in the stream of the seed. Samples 32 to 63 of
            a seed are ``sample(32, first_sample=32)``.
        batch_size: number of samples that pass through the networks together. It changes the
            memory, not the samples. None: at most 1,024.
        denoise_scale: factor of the score in the final denoising step of images. 1 is Tweedie's
            formula; 2 reproduces the authors' released code.
        correctors: number of additional Langevin steps after the steps of each level. They
            leave out the recovery term, so they sample the density of x_{t-1} itself. They
            improve combinations, whose densities at two levels are not related by diffusion.
            CUDA graphs are not used with them.
        metropolis: whether to accept or reject each Langevin step (MALA), which removes the
            error of finite step sizes. It needs precision "fp32" or "fp64"; CUDA graphs are not
            used with it.
        progress: whether to show a progress bar.

    Raises:
        ValueError, TypeError: an argument has a wrong value or type. Steps and labels are checked
            when a sampler gets the request, against its model.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler, SampleRequest
        >>> request = SampleRequest(2, seed=1, steps=1)
        >>> Sampler(CDRL.from_pretrained("digits")).run(request).shape
        torch.Size([2, 1, 8, 8])
    """

    n: int
    seed: int = 0
    steps: Steps = None
    label: Label = None
    guidance: float = 0.0
    first_sample: int = 0
    batch_size: int | None = None
    denoise_scale: float = 1.0
    correctors: int = 0
    metropolis: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        check_integer("sample", "n", self.n, 0, 2**31)
        check_integer("sample", "seed", self.seed, -(2**63), 2**64)
        check_integer("sample", "first_sample", self.first_sample, 0, 2**63 - self.n)
        check_integer("sample", "correctors", self.correctors, 0, MAX_CORRECTORS + 1)
        if self.batch_size is not None:
            check_integer("sample", "batch_size", self.batch_size, 1, 2**31)
        for name in ("guidance", "denoise_scale"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, got {value}")

    @classmethod
    def of(cls, where: str, n: int, options: Mapping[str, Any]) -> SampleRequest:
        """Return the request that keyword arguments describe.

        Args:
            where: the function that messages name.
            n: number of samples.
            options: the other arguments by name.

        Raises:
            TypeError: an unknown argument; the message has the known ones.
            ValueError: as `SampleRequest`.
        """
        known = [f.name for f in dataclasses.fields(cls) if f.name != "n"]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(
                f"{where}: unknown argument {unknown[0]!r}; it takes {', '.join(known)}"
            )
        return cls(n, **options)

    @property
    def largest_batch(self) -> int:
        """The number of samples that pass through the networks together, at most."""
        return BATCH_SIZE if self.batch_size is None else self.batch_size

    def batches(self) -> list[range]:
        """Return the indices of each batch's samples; one empty batch for n = 0."""
        size, n = self.largest_batch, self.n
        return [range(start, min(start + size, n)) for start in range(0, max(n, 1), size)]
