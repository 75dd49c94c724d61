"""`Sampler`: checks the arguments of a request and runs its batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from cdrl_fast._lazy import progress_bar
from cdrl_fast.engine import FrozenModel, Terms, chain_precision
from cdrl_fast.errors import BackendUnavailable, check_integer
from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.densities import Density
from cdrl_fast.model.schedule import StepPlan, Steps
from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.langevin_step import BACKENDS
from cdrl_fast.precision import EXACT, Precision
from cdrl_fast.sampling.chain import CORRECTOR, Chain
from cdrl_fast.sampling.chain_graph import (
    ChainGraph,
    GraphCache,
    terms_signature,
    unavailable_reason,
)
from cdrl_fast.sampling.inpainting import UNCONSTRAINED, Inpainting, Observation
from cdrl_fast.sampling.label_terms import label_terms
from cdrl_fast.sampling.scoring import Scoring
from cdrl_fast.sampling.trace import Recorder, Trace, TraceKind, merge_traces

_GRAPHS = ("auto", "chain", "step", "off")


class Sampler(Inpainting, Scoring):
    """A sampler of a CDRL model: draws, completes and scores samples.

    A chain starts from noise x_T ~ N(0, I). Each level t = T … 1 proposes
    y_0 = initializer(x_t) + noise and then takes K Langevin steps on log p(y | x_t); images end
    with one denoising step. The noise is a pure function of seed and sample index, so a sample
    does not depend on the batch in which it is drawn.

    The sampler works on a private copy of the networks. It never modifies the model, and it reads
    the weights again before a call if they have changed.

    Args:
        model: a `CDRL` model, or a combination of models' densities (`conditional`, `product`,
            `guided`, `negated`, `mixture`, `tempered`).
        device: device to sample on; None: the device of the (first) model's parameters.
        precision: precision of the networks: "bf16", "fp32", "fp64" (state and noise as well), on
            GPUs also "tf32" and "fp16"; or "auto": bfloat16 for the library's own energies where
            the processor has bfloat16 multiplication, else float32. The chain's state and all sums
            are at least float32.
        backend: implementation of the operations: "native" (C++, on CPUs), "cuda", "triton",
            "reference", or "auto": the first that is available. With "auto" a table selects cuDNN
            for the 3×3 convolutions where it is faster.
        graph: CUDA graphs, on CUDA devices and for the library's own energies of images. "step":
            one Langevin step is captured and replayed. "chain": the complete chain is captured,
            which suits small batches that are drawn repeatedly. "off": none. "auto": "step" where
            it is available, else "off". Each new batch size or step plan is captured when it is
            first drawn.
        compile: whether to compile your own energies and initializers with ``torch.compile``, value
            and gradient in one graph, when they are first called. It needs a C++ compiler on CPUs
            and triton on GPUs. The library's networks have their own kernels and are not compiled.

    Raises:
        TypeError: ``model`` is neither a `CDRL` nor a combination.
        ValueError: an unknown precision, backend or graph mode.
        BackendUnavailable: a precision, backend or graph mode that is not available here.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler
        >>> Sampler(CDRL.from_pretrained("digits")).sample(2, label="7", steps=1).shape
        torch.Size([2, 1, 8, 8])
    """

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Sampler:
        """Return a sampler of the saved model ``CDRL.from_pretrained(name)``.

        Args:
            name: a model that ships with the library, a folder, or a Hugging Face Hub id; as in
                `CDRL.from_pretrained`.
            options: keyword arguments of `Sampler`.

        Raises:
            CheckpointError: an unknown name, or missing or corrupt files.
            ValueError, TypeError, BackendUnavailable: as `Sampler`.

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
        self.precision = self._common_precision(precision, models, backend)
        self.dtype = self.precision.state
        self.backend = choose("Sampler", backend, self.device, self.dtype, BACKENDS)
        self._frozen = FrozenModel(
            [(m.energy, m.initializer) for m in models],
            device=self.device,
            precision=self.precision,
            backend=backend if backend in ("reference", "triton") else "auto",
            compile=compile,
        )
        self._chain = Chain(self.model, self._frozen, self.backend, self.precision.name in EXACT)
        self.graph = self._graph_mode(graph)
        self._graphs = GraphCache()

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
        """Draw ``n`` samples.

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
            trace: "levels" or "steps" to return a `Trace` of the chains as well. CUDA graphs are
                not used with it.

        Returns:
            Images float32 (n, C, H, W) in [-1, 1], or points float32 (n, dim), which are neither
            denoised nor clamped; float64 with precision="fp64". With ``trace`` a pair
            (samples, `Trace`).

        Raises:
            ValueError, TypeError: an argument has a wrong value or type.
            ChainDiverged: a state became non-finite (NaN or Inf); the error names sample, level and
                step.

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
        return samples if trace is None else (samples, merge_traces(recorders))

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
        observation: Observation | None = None,
    ) -> tuple[Tensor, list[Recorder]]:
        """Run all batches of `sample` or, with an ``observation``, of `inpaint`."""
        plan = self.model.plan(steps)
        check_integer("Sampler.sample", "n", n, 0, 2**31)
        check_integer("Sampler.sample", "seed", seed, -(2**63), 2**64)
        check_integer("Sampler.sample", "first_sample", first_sample, 0, 2**63 - n)
        check_integer("Sampler.sample", "correctors", correctors, 0, CORRECTOR)
        if correctors and max(plan.counts) >= CORRECTOR:
            raise ValueError(
                f"correctors: with them a level must take fewer than {CORRECTOR} steps, got "
                f"{max(plan.counts)}; pass fewer steps or correctors=0"
            )
        if metropolis and not self._chain.exact:
            raise ValueError(
                f"metropolis: energies in {self.precision.name} cannot be compared between "
                'neighbouring states; create the Sampler with precision="fp32" or "fp64"'
            )
        terms = label_terms(self.source, (seed, first_sample), n, label, guidance, self.device)
        if not math.isfinite(denoise_scale):
            raise ValueError(f"denoise_scale: expected a finite number, got {denoise_scale}")
        if trace not in (None, "levels", "steps"):
            raise ValueError(f'trace: expected None, "levels" or "steps", got {trace!r}')
        size = 1024 if batch_size is None else batch_size
        check_integer("Sampler.sample", "batch_size", size, 1, 2**31)
        self._frozen.refresh()
        plain = trace is None and observation is None and not correctors and not metropolis
        use_graph = plain and n > 0
        batches, recorders = [], []
        passes = 1 if observation is None else observation.passes
        total = passes * (sum(plan.counts) + correctors * len(plan.counts))
        total *= -(-n // size)
        with progress_bar(progress, total=total, desc="sampling", unit="step") as bar:
            for start in range(0, max(n, 1), size):
                stop = min(start + size, n)
                recorder = Recorder(trace)
                rng = (seed, first_sample + start)
                batch_terms = tuple(network_terms.slice(start, stop) for network_terms in terms)
                graph = (
                    self._captured_graph(stop - start, plan, batch_terms, denoise_scale)
                    if use_graph
                    else None
                )
                if graph is not None:
                    batches.append(graph.run(batch_terms, *rng, bar.update).clone())
                    self._chain.raise_if_diverged(graph.first_bad, first_sample + start)
                    continue
                constraint = (
                    UNCONSTRAINED if observation is None else observation.constraint(start, stop)
                )
                x, energy = self._chain.run(
                    stop - start,
                    rng,
                    plan,
                    batch_terms,
                    correctors,
                    metropolis,
                    constraint,
                    recorder,
                    bar.update,
                )
                samples = self._chain.denoise(x, energy, denoise_scale)
                batches.append(constraint.insert_known(samples))
                recorders.append(recorder)
        return torch.cat(batches), recorders

    def working_memory(self, batch: int) -> int | None:
        """Return the bytes of workspace that the energy's gradient of a batch needs.

        Weights, the state and the gradient itself are not counted.

        Args:
            batch: number of samples.

        Returns:
            Bytes, or None where autograd computes the gradient.
        """
        return self._frozen.working_memory(batch, self.model.sample_shape)

    def _common_precision(self, name: str, models: Sequence[CDRL], backend: str) -> Precision:
        """Return the precision that the energies of all models support."""
        precisions = {chain_precision(name, m.energy, self.device, backend=backend) for m in models}
        # "auto" is bfloat16 only for networks with kernels, so models can disagree.
        return precisions.pop() if len(precisions) == 1 else Precision("fp32")

    def _graph_mode(self, graph: str) -> str:
        """Return "step", "chain" or "off"; raise if the mode is not available."""
        reason = unavailable_reason(self._frozen)
        if graph == "off" or (graph == "auto" and reason is not None):
            return "off"
        if reason is not None:
            raise BackendUnavailable(f"graph={graph!r} is not available: {reason}")
        return "step" if graph == "auto" else graph

    def _captured_graph(
        self, n: int, plan: StepPlan, terms: tuple[Terms, ...], denoise_scale: float
    ) -> ChainGraph | None:
        """Return the CUDA graph for a batch of ``n`` samples; None where graphs are off."""
        if self.graph == "off":
            return None
        schedule = self.model.schedule

        def capture() -> ChainGraph:
            return ChainGraph(
                self._frozen,
                [schedule.level(t, plan) for t in range(schedule.levels, 0, -1)],
                (n, *self.model.sample_shape),
                terms,
                full_chain=self.graph == "chain",
                denoise=lambda x, energy: self._chain.denoise(x, energy, denoise_scale),
            )

        return self._graphs.get((n, plan, terms_signature(terms), denoise_scale), capture)
