"""`Sampler`: what is asked of a model, checked, and its batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from cdrl_fast._lazy import progress_bar
from cdrl_fast.engine import FrozenModel, Terms, chain_precision
from cdrl_fast.errors import BackendUnavailable
from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.densities import Density
from cdrl_fast.model.schedule import StepPlan, Steps
from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.philox import check_integer
from cdrl_fast.precision import EXACT, Precision
from cdrl_fast.sampling.chain import CORRECTOR, Chain
from cdrl_fast.sampling.chain_graph import ChainGraph, Graphs, form_of, unavailable
from cdrl_fast.sampling.inpainting import UNCONSTRAINED, Inpainting, Observation
from cdrl_fast.sampling.label_terms import label_terms
from cdrl_fast.sampling.scoring import Scoring
from cdrl_fast.sampling.trace import Recorder, Trace, TraceKind, joined

_GRAPHS = ("auto", "chain", "step", "off")


class Sampler(Inpainting, Scoring):
    """Draws samples from a CDRL model by annealed Langevin dynamics.

    From x_T ~ N(0, I), each level t = T … 1 proposes y_0 = initializer(x_t) + noise and takes K
    Langevin steps on log p(y | x_t); images end with one denoising step. The noise is a pure
    function of seed and sample index, so a sample does not depend on the batch it is drawn in.

    Args:
        model: a model, or a combination of models' densities (`conditional`, `product`, `guided`,
            `negated`, `mixture`, `tempered`). Weights are read anew when they have changed, and
            never modified.
        device: where to sample; by default where the (first) model's parameters are.
        precision: of the networks: "bf16", "fp32", "fp64" (the state, too), on GPUs "tf32" and
            "fp16", or "auto": bfloat16 for the library's own energies where the processor
            multiplies it, else float32. The chain's state and all sums are float32 at least.
        backend: which room of the operations to use: "native" (C++, on CPUs), "cuda", "triton",
            "reference", or "auto": the first that can; a table picks cuDNN for 3×3 convolutions
            where it is faster.
        graph: on CUDA devices, for the library's own energies of images: "step", a Langevin step
            is captured once as a CUDA graph and replayed; "chain", all of a chain is, which serves
            small batches drawn again and again; "off"; or "auto": "step" where it can be had.
            Each batch size and plan of steps is captured when first drawn.
        compile: whether energies and initializers of your own go through ``torch.compile``, there
            and back in one graph, when first called; it needs a C++ compiler on CPUs and triton on
            GPUs. The library's networks have kernels and stay as they are.

    Raises:
        ValueError: an unknown choice. BackendUnavailable: a choice that cannot be had.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler
        >>> Sampler(CDRL.from_pretrained("digits")).sample(2, label="7", steps=1).shape
        torch.Size([2, 1, 8, 8])
    """

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Sampler:
        """The sampler of `CDRL.from_pretrained(name)`; ``options`` are those of the class.

        Examples:
            >>> from cdrl_fast import Sampler
            >>> Sampler.from_pretrained("digits", precision="fp32").sample(2, steps=1).shape
            torch.Size([2, 1, 8, 8])
        """
        return cls(CDRL.from_pretrained(name), **options)

    def __init__(
        self,
        model: CDRL | Density,
        *,
        device: torch.device | str | None = None,
        precision: str = "auto",
        backend: str = "auto",
        graph: str = "auto",
        compile: bool = False,
    ) -> None:
        if not isinstance(model, CDRL | Density):
            raise TypeError(
                f"Sampler: expected a CDRL or a combination of them, got {type(model).__name__}"
            )
        if graph not in _GRAPHS:
            raise ValueError(f"graph: expected one of {_GRAPHS}, got {graph!r}")
        models = (model,) if isinstance(model, CDRL) else model.models
        parameter = next(models[0].parameters(), torch.empty(0))
        self.source, self.model = model, models[0]
        self.device = torch.device(device) if device is not None else parameter.device
        self.precision = self._precision(precision, models, backend)
        self.dtype = self.precision.state
        self.backend = choose("Sampler", backend, self.device, self.dtype)
        self._frozen = FrozenModel(
            [(m.energy, m.initializer) for m in models],
            device=self.device,
            precision=self.precision,
            backend=backend if backend in ("reference", "triton") else "auto",
            compile=compile,
        )
        self._chain = Chain(self.model, self._frozen, self.backend, self.precision.name in EXACT)
        self.graph = self._graph_of(graph)
        self._graphs = Graphs()

    @overload
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: Steps = None,
        label: Label = None,
        guidance: float = 0.0,
        first_sample: int = 0,
        batch_size: int | None = None,
        denoise_scale: float = 1.0,
        correctors: int = 0,
        metropolis: bool = False,
        progress: bool = False,
        trace: None = None,
    ) -> Tensor: ...

    @overload
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: Steps = None,
        label: Label = None,
        guidance: float = 0.0,
        first_sample: int = 0,
        batch_size: int | None = None,
        denoise_scale: float = 1.0,
        correctors: int = 0,
        metropolis: bool = False,
        progress: bool = False,
        trace: TraceKind,
    ) -> tuple[Tensor, Trace]: ...

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: Steps = None,
        label: Label = None,
        guidance: float = 0.0,
        first_sample: int = 0,
        batch_size: int | None = None,
        denoise_scale: float = 1.0,
        correctors: int = 0,
        metropolis: bool = False,
        progress: bool = False,
        trace: TraceKind | None = None,
    ) -> Tensor | tuple[Tensor, Trace]:
        """Draws ``n`` samples.

        Args:
            n: how many; 0 is allowed.
            seed: 64-bit integer; the same seed gives the same samples.
            steps: Langevin steps a level: None (as trained), an int, one int for each of levels
                1 … T, a StepPlan, or "tuned": the plan that is saved with the (first) model. With
                K' of K steps, h² = K/K'.
            label: a class number 1 … classes, a class name, or ``n`` of them.
            guidance: classifier-free weight w: (1 + w) f(·|label) - w f(·|no label).
            first_sample: index of the first sample in the seed's stream: samples 32 to 63 of a seed
                are ``sample(32, first_sample=32)``.
            batch_size: samples that go through the networks together; memory, not results, depends
                on it. None: all at once, up to 1,024.
            denoise_scale: factor of the last denoising step's score. 1 is Tweedie's formula; the
                authors' released code takes a score twice as large, which is 2 here.
            correctors: extra Langevin steps after each level's, without the recovery term, on the
                density of x_{t-1} itself. They bring combinations closer, whose densities at
                different levels are not each other's diffusions; without CUDA graphs.
            metropolis: accept or refuse each Langevin step, so that it leaves its density as it is
                (MALA); needs precision "fp32" or "fp64", and runs without CUDA graphs.
            progress: show a progress bar.
            trace: "levels" or "steps" to return the chain's states as well.

        Returns:
            (n, C, H, W) float32 in [-1, 1]; of 2-D models (n, 2), neither clamped nor denoised.
            With precision="fp64" float64. With ``trace``, a pair (samples, Trace).

        Raises:
            ValueError, TypeError: an argument that does not fit.
            ChainDiverged: a state left the finite numbers; names level and step.

        Examples:
            >>> from cdrl_fast import CDRL, Sampler
            >>> sampler = Sampler(CDRL.from_pretrained("digits"))
            >>> samples, trace = sampler.sample(4, label="7", guidance=1.0, steps=1, trace="levels")
            >>> samples.shape, len(trace.states)
            (torch.Size([4, 1, 8, 8]), 7)
        """
        samples, recorders = self._run(
            n,
            seed=seed,
            steps=steps,
            label=label,
            guidance=guidance,
            first_sample=first_sample,
            batch_size=batch_size,
            denoise_scale=denoise_scale,
            correctors=correctors,
            metropolis=metropolis,
            progress=progress,
            trace=trace,
        )
        return samples if trace is None else (samples, joined(recorders))

    def _run(
        self,
        n: int,
        *,
        seed: int,
        steps: Steps,
        label: Label,
        guidance: float,
        first_sample: int,
        batch_size: int | None,
        denoise_scale: float,
        progress: bool,
        correctors: int = 0,
        metropolis: bool = False,
        trace: TraceKind | None = None,
        held: Observation | None = None,
    ) -> tuple[Tensor, list[Recorder]]:
        """All batches of `sample`; with known entries ``held`` those of `inpaint`."""
        plan = self.model.plan(steps)
        check_integer("Sampler.sample", "n", n, 0, 2**31)
        check_integer("Sampler.sample", "seed", seed, -(2**63), 2**64)
        check_integer("Sampler.sample", "first_sample", first_sample, 0, 2**63 - n)
        check_integer("Sampler.sample", "correctors", correctors, 0, CORRECTOR)
        if correctors and max(plan.counts) >= CORRECTOR:
            raise ValueError(f"correctors: expected fewer than {CORRECTOR} steps a level with them")
        if metropolis and not self._chain.exact:
            raise ValueError(
                f"metropolis: energies in {self.precision.name} cannot be compared between "
                'neighbouring states; make the sampler with precision="fp32"'
            )
        terms = label_terms(self.source, (seed, first_sample), n, label, guidance, self.device)
        if not math.isfinite(denoise_scale):
            raise ValueError(f"denoise_scale: expected a finite number, got {denoise_scale}")
        if trace not in (None, "levels", "steps"):
            raise ValueError(f'trace: expected None, "levels" or "steps", got {trace!r}')
        size = 1024 if batch_size is None else batch_size
        check_integer("Sampler.sample", "batch_size", size, 1, 2**31)
        self._frozen.refresh()
        plain = trace is None and held is None and not correctors and not metropolis
        graphed = plain and n > 0
        parts, recorders = [], []
        turns = 1 if held is None else held.passes
        total = turns * (sum(plan.counts) + correctors * len(plan.counts))
        total *= -(-n // size)
        with progress_bar(progress, total=total, desc="sampling", unit="step") as bar:
            for start in range(0, max(n, 1), size):
                stop = min(start + size, n)
                recorder = Recorder(trace)
                rng = (seed, first_sample + start)
                part = tuple(of_network.slice(start, stop) for of_network in terms)
                graph = self._captured(stop - start, plan, part, denoise_scale) if graphed else None
                if graph is not None:
                    parts.append(graph.run(part, *rng, bar.update).clone())
                    self._chain.raise_if_diverged(graph.first_bad, first_sample + start)
                    continue
                hold = UNCONSTRAINED if held is None else held.of_chains(start, stop)
                x, energy = self._chain.run(
                    stop - start,
                    rng,
                    plan,
                    part,
                    correctors,
                    metropolis,
                    hold,
                    recorder,
                    bar.update,
                )
                parts.append(hold.finish(self._chain.finish(x, energy, denoise_scale)))
                recorders.append(recorder)
        return torch.cat(parts), recorders

    def working_memory(self, batch: int) -> int | None:
        """Bytes that one energy gradient of a batch takes, besides weights, state and gradient.

        None where it is left to autograd.
        """
        return self._frozen.working_memory(batch, self.model.sample_shape)

    def _precision(self, name: str, models: Sequence[CDRL], backend: str) -> Precision:
        """The one that all models' energies can be had in."""
        found = {chain_precision(name, m.energy, self.device, backend=backend) for m in models}
        # "auto" differs between networks with kernels and others.
        return found.pop() if len(found) == 1 else Precision("fp32")

    def _graph_of(self, asked: str) -> str:
        why = unavailable(self._frozen)
        if asked == "off" or (asked == "auto" and why is not None):
            return "off"
        if why is not None:
            raise BackendUnavailable(f"graph={asked!r} is not available: {why}")
        return "step" if asked == "auto" else asked

    def _captured(
        self, n: int, plan: StepPlan, terms: tuple[Terms, ...], denoise_scale: float
    ) -> ChainGraph | None:
        """The batch's chain as CUDA graphs; None where they are off."""
        if self.graph == "off":
            return None
        schedule = self.model.schedule

        def made() -> ChainGraph:
            return ChainGraph(
                self._frozen,
                [schedule.level(t, plan) for t in range(schedule.levels, 0, -1)],
                (n, *self.model.sample_shape),
                terms,
                whole=self.graph == "chain",
                finish=lambda x, energy: self._chain.finish(x, energy, denoise_scale),
            )

        return self._graphs.get((n, plan, form_of(terms), denoise_scale), made)
