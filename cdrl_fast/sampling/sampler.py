"""`Sampler`: draws, completes and scores samples of a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from cdrl_fast._lazy import progress_bar
from cdrl_fast.engine import FrozenModel, Terms, chain_precision
from cdrl_fast.errors import BackendUnavailable
from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.densities import Density
from cdrl_fast.model.schedule import StepPlan
from cdrl_fast.ops.keys import ChainKeys
from cdrl_fast.precision import Precision
from cdrl_fast.sampling.chain import Chain
from cdrl_fast.sampling.chain_graph import (
    ChainGraph,
    GraphCache,
    ReplayedChain,
    StepGraph,
    terms_signature,
    unavailable_reason,
)
from cdrl_fast.sampling.hooks import Hook, Progress
from cdrl_fast.sampling.inpainting import Inpainting, inpaint
from cdrl_fast.sampling.label_terms import label_terms
from cdrl_fast.sampling.request import (
    MAX_CORRECTORS,
    ObservationNoise,
    SampleOptions,
    SampleRequest,
)
from cdrl_fast.sampling.scoring import LevelStatistics, level_densities
from cdrl_fast.sampling.trace import RECORDERS, Trace, TraceKind
from cdrl_fast.sampling.transitions import Adjusted, Transition, unadjusted

_GRAPHS = ("auto", "chain", "step", "off")


class Sampler:
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
            it is available, else "off". Each new batch size, and with "chain" each new step plan,
            is captured when it is first drawn.
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
        self.source, self.model = model, model.models[0]
        parameter = next(self.model.parameters(), torch.empty(0))
        self.device = torch.device(device) if device is not None else parameter.device
        self.precision = self._common_precision(precision, backend)
        self.dtype = self.precision.state
        with torch.inference_mode(False):
            self.networks = FrozenModel(
                [(m.energy, m.initializer) for m in model.models],
                device=self.device,
                precision=self.precision,
                backend=backend,
                compile=compile,
            )
        self.backend = self.networks.backend
        self.graph, self._automatic_graph = self._graph_mode(graph), graph == "auto"
        self._graphs = GraphCache()

    def sample(self, n: int, **options: Unpack[SampleOptions]) -> Tensor:
        """Draw ``n`` samples.

        Args:
            n: number of samples, 0 or more.
            options: keyword arguments of `SampleRequest`: seed, steps, label, guidance,
                first_sample, batch_size, denoise_scale, correctors, metropolis, progress.

        Returns:
            Images float32 (n, C, H, W) in [-1, 1], or points float32 (n, dim), which are neither
            denoised nor clamped; float64 with precision="fp64".

        Raises:
            ValueError, TypeError: an argument has a wrong value or type.
            ChainDiverged: a state became non-finite (NaN or Inf); the error names sample, level and
                step.

        Examples:
            >>> from cdrl_fast import CDRL, Sampler
            >>> sampler = Sampler(CDRL.from_pretrained("digits"))
            >>> sampler.sample(4, label="7", guidance=1.0, steps=1).shape
            torch.Size([4, 1, 8, 8])
        """
        return self.run(SampleRequest.of("Sampler.sample", n, options))

    def sample_trace(
        self, n: int, *, trace: TraceKind = "levels", **options: Unpack[SampleOptions]
    ) -> Trace:
        """Draw ``n`` samples and record their chains. CUDA graphs are not used.

        Args:
            n: number of samples, 0 or more.
            trace: "levels": record the state after each level; "steps": after each Langevin step.
            options: as for `sample`.

        Returns:
            A `Trace`; its ``samples`` are those of `sample`.

        Raises:
            ValueError, TypeError, ChainDiverged: as `sample`.

        Examples:
            >>> from cdrl_fast import CDRL, Sampler
            >>> trace = Sampler(CDRL.from_pretrained("digits")).sample_trace(4, label="7", steps=1)
            >>> trace.samples.shape, len(trace.states)
            (torch.Size([4, 1, 8, 8]), 7)
        """
        request = SampleRequest.of("Sampler.sample_trace", n, options)
        if trace not in RECORDERS:
            raise ValueError(f'trace: expected "levels" or "steps", got {trace!r}')
        recorder = RECORDERS[trace]()
        transition = None
        if trace == "steps" and self.networks.precise:
            transition = Adjusted(request.metropolis, recorder.record_acceptance)
        return recorder.trace(self.run(request, transition=transition, hooks=[recorder]))

    def run(
        self,
        request: SampleRequest,
        *,
        transition: Transition | None = None,
        hooks: Sequence[Hook] = (),
        chain: Callable[..., Chain] = Chain,
    ) -> Tensor:
        """Draw the samples of a request, on request with parts of your own.

        Args:
            request: what `sample` takes.
            transition: takes the Langevin steps of a phase, such as `unadjusted` or `Adjusted()`;
                None: what the request says. CUDA graphs are not used with one of your own.
            hooks: look at the states of the chains, or change them; see `Hook`. CUDA graphs are not
                used with them.
            chain: subclass of `Chain` for another loop over the levels, called as `Chain`.

        Returns:
            As `sample`.

        Raises:
            ValueError, TypeError, ChainDiverged: as `sample`.

        Examples:
            >>> from cdrl_fast import CDRL, Sampler, SampleRequest
            >>> Sampler(CDRL.from_pretrained("digits")).run(SampleRequest(2, steps=1)).shape
            torch.Size([2, 1, 8, 8])
        """
        plan = self._checked_plan(request)
        terms = label_terms(self.source, request, self.device)
        own = transition is not None or bool(hooks) or chain is not Chain
        plain = not (own or request.correctors or request.metropolis) and request.n > 0
        if transition is None:
            transition = Adjusted() if request.metropolis else unadjusted
        samples, done, batches = [], 0, request.batches()
        bar_context = progress_bar(request.progress, desc="sampling", unit="step")
        with self.networks.in_use(), bar_context as bar:
            if request.progress:
                hooks = (*hooks, Progress(bar))
            for rows in batches:
                first_sample = request.first_sample + rows.start
                keys = ChainKeys(request.seed, first_sample, self.model.schedule.levels)
                batch = chain(
                    self.model, self.networks, keys, transition, request.correctors, hooks
                )
                bar.total, done = batch.steps(plan) * len(batches), done + batch.steps(plan)
                batch_terms = [t.slice(rows.start, rows.stop) for t in terms]
                if plain and self.graph != "off":
                    batch_terms = [t.in_tensors(self.device, self.dtype) for t in batch_terms]
                    batch = self._captured(batch, rows, plan, batch_terms, request.denoise_scale)
                x = batch.run(len(rows), plan, batch_terms)
                batch.raise_if_diverged()
                samples.append(batch.denoise(x, request.denoise_scale))
                bar.update(done - bar.n)
        return torch.cat(samples)

    def inpaint(
        self,
        images: Tensor,
        known: Tensor,
        *,
        samples: int = 1,
        noise: ObservationNoise = "shared",
        passes: int = 1,
        candidates: int = 1,
        **options: Unpack[SampleOptions],
    ) -> Tensor:
        """Draw the unknown entries of images, or of points, given the known ones.

        The chain is that of `sample`, but the known entries of each state x_t are set to
        √ᾱ_t o + √(1 - ᾱ_t) ε, with o the observation: in x_T, in the proposal of each level and
        after each Langevin step. The draw of x_{t-1} therefore knows x_t and its own known entries,
        but not those of the less noisy levels that follow. So with one pass the samples follow
        p(unknown | known) only roughly. More ``passes`` come closer; in the limit of many passes
        and steps the distribution is exact. More ``candidates`` select the right one of distant
        modes, between which passes hardly move a chain. CUDA graphs are not used.

        Args:
            images: float (n, C, H, W) in [-1, 1], or points (n, dim). Unknown entries are ignored
                and may be NaN.
            known: bool, True where an entry is known. The shape broadcasts to that of ``images``:
                (H, W), (n, 1, H, W), (C, 1, 1) for a mask per channel; (dim,) or (n, dim) for
                points.
            samples: number of completions k of each image.
            noise: "shared": one ε per completion for all levels, as in training pairs; "fresh": one
                per completion and level.
            passes: number of passes through each level. Before each further pass x_{t-1} is noised
                to x_t. The time grows in proportion.
            candidates: number of completions that are drawn for each one returned. The returned one
                is selected with probability proportional to exp(-Σ_t ‖k_0 - k̂_0(x_t)‖² / (2 v_t)),
                that is, by how well the model predicts the known entries k_0 from noisy ones.
                Without ``label``, if there are at least as many candidates as classes, candidates
                take the classes cyclically; a multiple of the number of classes treats all classes
                alike.
            options: keyword arguments of `SampleRequest`, without ``metropolis``. ``label`` is one
                class for all images or a sequence of ``n``; ``first_sample`` is the index of the
                first completion in the stream of the seed. If nothing is known, one pass gives
                the samples of `sample`.

        Returns:
            Float32 (n·k, …), float64 with precision="fp64". Rows i·k … i·k + k - 1 complete image
            i. Their known entries equal those of ``images`` to the bit.

        Raises:
            ValueError, TypeError: an argument has a wrong value or type.
            ChainDiverged: a state became non-finite (NaN or Inf); the step that the error names
                counts through all passes of the level.

        Source: passes: Lugmayr et al., "RePaint", CVPR 2022. Candidates: the weights approximate
        those of Trippe et al., "Diffusion probabilistic modeling of protein backbones in 3D for the
        motif-scaffolding problem", ICLR 2023.

        Examples:
            >>> import torch
            >>> from cdrl_fast import CDRL, Sampler
            >>> sampler = Sampler(CDRL.from_pretrained("digits"))
            >>> known = torch.arange(8)[:, None] < 4  # the upper half
            >>> sampler.inpaint(torch.zeros(2, 1, 8, 8), known, samples=3, steps=1).shape
            torch.Size([6, 1, 8, 8])
        """
        request = SampleRequest.of("Sampler.inpaint", 0, options)
        return inpaint(self, images, known, request, Inpainting(samples, noise, passes, candidates))

    def log_density(
        self,
        images: Tensor,
        *,
        label: Label = None,
        levels: Sequence[int] = (1,),
        statistics: LevelStatistics | None = None,
        seed: int = 0,
        first_sample: int = 0,
        batch_size: int = 1024,
    ) -> Tensor:
        """Return the log-density of samples, up to a constant per level.

        At level 1 it is that of the images themselves, f(m_1 x, λ_0) / s_1². At level t it is
        f(m_t x_{t-1}, λ_{t-1}) / s_t² of x_{t-1} = √ᾱ_{t-1} x + √(1 - ᾱ_{t-1}) ε, with ε from the
        noise stream. Data unlike the training data have low log-densities.

        Args:
            images: float (n, C, H, W) in [-1, 1], or points (n, dim).
            label: the class of log p(·|label), as in `sample`; None: no class.
            levels: levels t from 1 to T.
            statistics: from `level_statistics`, needed for several levels, because log-densities of
                different levels have different standard deviations. With it the method returns
                (log-density - mean) / std, averaged over levels.
            seed, first_sample: seed and index of the first sample of the noise ε.
            batch_size: number of samples that pass through the networks together. It changes the
                memory, not the log-densities.

        Returns:
            Log-densities or, with ``statistics``, standardised ones: (n,) float32, float64 with
            precision="fp64", on the sampler's device.

        Raises:
            ValueError, TypeError: an argument has a wrong value or type.

        Source: Zhu, Xie, Wu, Gao, ICLR 2024, section 4 (level 1).

        Examples:
            >>> from cdrl_fast import CDRL, Sampler
            >>> from cdrl_fast.data import load_data
            >>> images, _ = load_data("digits").batch(range(4))
            >>> sampler = Sampler(CDRL.from_pretrained("digits"))
            >>> bool((sampler.log_density(images) > sampler.log_density(-images)).all())
            True
        """
        if len(levels) != 1 and statistics is None:
            raise ValueError(
                "log_density: several levels need statistics=, which Sampler.level_statistics "
                f"computes from training data; got levels={tuple(levels)}"
            )
        options: SampleOptions = {
            "seed": seed, "label": label, "first_sample": first_sample, "batch_size": batch_size,
        }  # fmt: skip
        densities = level_densities(self, images, levels, options)
        return densities[0] if statistics is None else statistics.score(levels, densities)

    def level_statistics(
        self,
        images: Tensor,
        *,
        label: Label = None,
        levels: Sequence[int] | None = None,
        seed: int = 0,
        batch_size: int = 1024,
    ) -> LevelStatistics:
        """Return mean and standard deviation of the log-density of samples at each level.

        Args:
            images: at least two samples, such as the training data or a part of it.
            levels: levels t from 1 to T; None: all.
            label, seed, batch_size: as in `log_density`.

        Returns:
            `LevelStatistics`, for ``log_density(statistics=…)``.

        Raises:
            ValueError, TypeError: fewer than two samples, or as in `log_density`.

        Examples:
            >>> from cdrl_fast import CDRL, Sampler
            >>> from cdrl_fast.data import load_data
            >>> images, _ = load_data("digits").batch(range(4))
            >>> sampler = Sampler(CDRL.from_pretrained("digits"))
            >>> statistics = sampler.level_statistics(images, levels=(1, 2))
            >>> sampler.log_density(images, levels=(1, 2), statistics=statistics).shape
            torch.Size([4])
        """
        levels = range(1, self.model.schedule.levels + 1) if levels is None else levels
        if len(images) < 2:
            raise ValueError(f"level_statistics: expected at least 2 samples, got {len(images)}")
        options: SampleOptions = {"seed": seed, "label": label, "batch_size": batch_size}
        densities = level_densities(self, images, levels, options)
        return LevelStatistics.from_densities(levels, densities)

    def working_memory(self, batch: int) -> int | None:
        """Return the bytes of workspace that the energy's gradient of a batch needs.

        Weights, the state and the gradient itself are not counted.

        Args:
            batch: number of samples.

        Returns:
            Bytes, or None where autograd computes the gradient.
        """
        return self.networks.working_memory(batch, self.model.sample_shape)

    def _checked_plan(self, request: SampleRequest) -> StepPlan:
        """Return the request's step plan; raise if the request does not fit the sampler."""
        plan = self.model.plan(request.steps)
        if request.correctors and max(plan.counts) > MAX_CORRECTORS:
            raise ValueError(
                f"correctors: with them a level must take at most {MAX_CORRECTORS} steps, got "
                f"{max(plan.counts)}; pass fewer steps or correctors=0"
            )
        if request.metropolis and not self.networks.precise:
            raise ValueError(
                f"metropolis: energies in {self.precision.name} cannot be compared between "
                'neighbouring states; create the Sampler with precision="fp32" or "fp64"'
            )
        return plan

    def _common_precision(self, name: str, backend: str) -> Precision:
        """Return the precision that the energies of all models support."""
        precisions = {
            chain_precision(name, m.energy, self.device, backend=backend)
            for m in self.source.models
        }
        # "auto" is bfloat16 only for networks with kernels, so models can disagree.
        return precisions.pop() if len(precisions) == 1 else Precision("fp32")

    def _graph_mode(self, graph: str) -> str:
        """Return "step", "chain" or "off"; raise if the mode is not available."""
        reason = unavailable_reason(self.networks)
        if graph == "off" or (graph == "auto" and reason is not None):
            return "off"
        if reason is not None:
            raise BackendUnavailable(f"graph={graph!r} is not available: {reason}")
        return "step" if graph == "auto" else graph

    def _captured(
        self, chain: Chain, rows: range, plan: StepPlan, terms: Sequence[Terms], scale: float
    ) -> Chain:
        """Return the chain of a batch by CUDA graphs: of each step, or of the complete chain."""
        networks, n, signature = self.networks, len(rows), terms_signature(terms)
        try:
            if self.graph == "step":
                step = self._graphs.get(
                    (n, signature), lambda: StepGraph(networks, chain.shape(n), terms)
                )
                return replace(chain, transition=step)
            graph = self._graphs.get(
                (n, plan, signature, scale),
                lambda: ChainGraph(chain, networks, n, plan, terms, scale),
            )
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not self._automatic_graph:
                raise
            self.graph = "off"
            warnings.warn(
                f"sampling goes on without CUDA graphs, because a capture failed: {error}",
                stacklevel=4,
            )
            return chain
        return ReplayedChain(chain.model, networks, chain.keys, graph=graph)
