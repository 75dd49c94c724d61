"""`Sampler`: the loop over noise levels and Langevin steps."""

from __future__ import annotations

import math
from itertools import product
from typing import overload

import torch
from torch import Tensor

from cdrl_fast.engine import FrozenModel, LevelEnergy, Terms, chain_precision
from cdrl_fast.engine.graph import ChainGraph, Graphs, form_of, unavailable
from cdrl_fast.errors import BackendUnavailable, ChainDiverged
from cdrl_fast.inpainting import FREE, Free, Inpainting, Observation
from cdrl_fast.model import CDRL, Label
from cdrl_fast.ops import normal
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.philox import Purpose, check_integer, level_draw
from cdrl_fast.ops.rooms import choose
from cdrl_fast.progress import Advance
from cdrl_fast.schedule import Level, StepPlan, Steps
from cdrl_fast.trace import Recorder, Trace, TraceKind, joined

_GRAPHS = ("auto", "chain", "step", "off")


class Sampler(Inpainting):
    """Draws samples from a CDRL model by annealed Langevin dynamics.

    From x_T ~ N(0, I), each level t = T … 1 proposes y_0 = initializer(x_t) + noise and takes K
    Langevin steps on log p(y | x_t); images end with one denoising step. The noise is a pure
    function of seed and sample index, so a sample does not depend on the batch it is drawn in.

    Args:
        model: the model; its weights are read anew when they have changed, and never modified.
        device: where to sample; by default where the model's parameters are.
        precision: of the networks: "bf16", "fp32", "fp64" (the state, too), or "auto": bfloat16
            for the library's own energies where the processor multiplies it, else float32. The
            chain's state and all sums are float32 at least.
        backend: which room of the operations to use: "native" (C++, on CPUs), "cuda", "triton",
            "reference", or "auto": the first that can.
        graph: on CUDA devices, for the library's own energies of images: "step", a Langevin step
            is captured once as a CUDA graph and replayed; "chain", all of a chain is, which serves
            small batches drawn again and again; "off"; or "auto": "step" where it can be had.
            Each batch size and plan of steps is captured when first drawn.
        compile: whether energies and initializers of your own go through ``torch.compile``, there
            and back in one graph, when first called; it needs a C++ compiler on CPUs and triton on
            GPUs. The library's networks have kernels and stay as they are.

    Raises:
        ValueError: an unknown choice. BackendUnavailable: a choice that cannot be had.

    Example:
        >>> from cdrl_fast import CDRL, Sampler
        >>> Sampler(CDRL.from_pretrained("digits")).sample(2, label="7", steps=1).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        model: CDRL,
        *,
        device: torch.device | str | None = None,
        precision: str = "auto",
        backend: str = "auto",
        graph: str = "auto",
        compile: bool = False,
    ) -> None:
        if not isinstance(model, CDRL):
            raise TypeError(f"Sampler: model must be a CDRL, got {type(model).__name__}")
        if graph not in _GRAPHS:
            raise ValueError(f"graph: expected one of {_GRAPHS}, got {graph!r}")
        parameter = next(model.parameters(), torch.empty(0))
        self.model = model
        self.device = torch.device(device) if device is not None else parameter.device
        self.precision = chain_precision(precision, model.energy, self.device, backend=backend)
        self.dtype = self.precision.state
        self.backend = choose("Sampler", backend, self.device, self.dtype)
        self._frozen = FrozenModel(
            model.energy,
            model.initializer,
            device=self.device,
            precision=self.precision,
            backend=backend if backend in ("reference", "triton") else "auto",
            compile=compile,
        )
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
        progress: bool = False,
        trace: TraceKind | None = None,
    ) -> Tensor | tuple[Tensor, Trace]:
        """Draws ``n`` samples.

        Args:
            n: how many; 0 is allowed.
            seed: 64-bit integer; the same seed gives the same samples.
            steps: Langevin steps a level: None (as trained), an int, one int for each of levels
                1 … T, or a StepPlan. With K' of K steps, h² = K/K'.
            label: a class number 1 … classes, a class name, or ``n`` of them.
            guidance: classifier-free weight w: (1 + w) f(·|label) - w f(·|no label).
            first_sample: index of the first sample in the seed's stream: samples 32 to 63 of a seed
                are ``sample(32, first_sample=32)``.
            batch_size: samples that go through the networks together; memory, not results, depends
                on it. None: all at once, up to 1,024.
            denoise_scale: factor of the last denoising step's score. 1 is Tweedie's formula; the
                authors' released code takes a score twice as large, which is 2 here.
            progress: show a progress bar.
            trace: "levels" or "steps" to return the chain's states as well.

        Returns:
            (n, C, H, W) float32 in [-1, 1]; of 2-D models (n, 2), neither clamped nor denoised.
            With precision="fp64" float64. With ``trace``, a pair (samples, Trace).

        Raises:
            ValueError, TypeError: an argument that does not fit.
            ChainDiverged: a state left the finite numbers; names level and step.
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
        trace: TraceKind | None = None,
        held: Observation | None = None,
    ) -> tuple[Tensor, list[Recorder]]:
        """All batches of `sample`; with known entries ``held`` those of `inpaint`."""
        terms = self._terms(n, label, guidance)
        plan = self.model.schedule.plan(steps)
        check_integer("Sampler.sample", "n", n, 0, 2**31)
        check_integer("Sampler.sample", "seed", seed, -(2**63), 2**64)
        check_integer("Sampler.sample", "first_sample", first_sample, 0, 2**63 - n)
        if not math.isfinite(denoise_scale):
            raise ValueError(f"denoise_scale: expected a finite number, got {denoise_scale}")
        if trace not in (None, "levels", "steps"):
            raise ValueError(f'trace: expected None, "levels" or "steps", got {trace!r}')
        size = 1024 if batch_size is None else batch_size
        check_integer("Sampler.sample", "batch_size", size, 1, 2**31)
        self._frozen.refresh()
        graphed = trace is None and n > 0 and held is None
        total = sum(plan.counts) * (1 if held is None else held.passes)
        parts, recorders = [], []
        with Advance(progress, -(-n // size) * total) as advance:
            for start in range(0, max(n, 1), size):
                stop = min(start + size, n)
                recorder = Recorder(trace)
                rng, part = (seed, first_sample + start), terms.slice(start, stop)
                graph = self._captured(stop - start, plan, part, denoise_scale) if graphed else None
                if graph is not None:
                    parts.append(graph.run(part, *rng, advance).clone())
                    self._raise_if_diverged(graph.first_bad, first_sample + start)
                    continue
                hold = FREE if held is None else held.of_chains(start, stop)
                x, energy = self._chain(stop - start, rng, plan, part, recorder, advance, hold)
                parts.append(hold.finish(self._finish(x, energy, denoise_scale)))
                recorders.append(recorder)
        return torch.cat(parts), recorders

    def working_memory(self, batch: int) -> int | None:
        """Bytes that one energy gradient of a batch takes, besides weights, state and gradient.

        None where it is left to autograd.
        """
        return self._frozen.working_memory(batch, self.model.sample_shape)

    def _graph_of(self, asked: str) -> str:
        why = unavailable(self._frozen)
        if asked == "off" or (asked == "auto" and why is not None):
            return "off"
        if why is not None:
            raise BackendUnavailable(f"graph={asked!r} is not available: {why}")
        return "step" if asked == "auto" else asked

    def _captured(
        self, n: int, plan: StepPlan, terms: Terms, denoise_scale: float
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
                finish=lambda x, energy: self._finish(x, energy, denoise_scale),
            )

        return self._graphs.get((n, plan, form_of(terms), denoise_scale), made)

    def _terms(self, n: int, label: Label, guidance: float) -> Terms:
        if not math.isfinite(guidance):
            raise ValueError(f"guidance: expected a finite number, got {guidance}")
        if guidance != 0.0 and self.model.num_classes == 0:
            raise ValueError(
                "guidance: this model is unconditional, so there is nothing to guide by"
            )
        if guidance != 0.0 and label is None:
            raise ValueError("guidance: pass the label to guide towards")
        indices = self.model.label_indices(label, n)
        return Terms.guided(None if indices is None else indices.to(self.device), guidance)

    def _chain(
        self,
        n: int,
        rng: tuple[int, int],
        plan: StepPlan,
        terms: Terms,
        recorder: Recorder,
        advance: Advance,
        hold: Free,
    ) -> tuple[Tensor, LevelEnergy]:
        """All levels, from x_T to x_0; and the last one's energy."""
        seed, first_sample = rng
        schedule, frozen = self.model.schedule, self._frozen
        shape = (n, *self.model.sample_shape)
        first_bad = torch.full((), NEVER, dtype=torch.int64, device=self.device)

        def noise(draw: int) -> Tensor:
            return normal(
                shape,
                seed=seed,
                draw=draw,
                first_sample=first_sample,
                device=self.device,
                dtype=self.dtype,
                backend=self.backend,
            )

        x = noise(Purpose.SAMPLING.draw(0))
        if recorder.kind == "levels":
            level = schedule.level(schedule.levels)
            energy = frozen.at(level.logsnr, terms)
            recorder.record("levels", x, level, energy, rescaled=True)
        hold(x, schedule.levels)
        for t, turn in product(range(schedule.levels, 0, -1), range(hold.passes)):
            level = schedule.level(t, plan)
            x = hold.noised_again(x, t, turn) if turn else x
            draw = Purpose.SAMPLING.draw(level_draw(t, schedule.levels)) + turn * (level.steps + 1)
            energy = frozen.at(level.logsnr, terms)
            proposal = frozen.proposal(level.logsnr_noisy, terms)
            # Without an initializer y is x itself, which the recovery term still needs.
            y = x.clone() if proposal is None else proposal(x) + level.init_std * noise(draw)
            hold(y, t - 1, level.scale)
            recorder.record("steps", y, level, energy, rescaled=False)

            def each(
                step: int, y: Tensor = y, level: Level = level, energy: LevelEnergy = energy
            ) -> None:
                last = step == level.steps
                hold(y, level.t - 1, level.scale * (level.rescale if last else 1.0))
                recorder.record("steps", y, level, energy, rescaled=last)
                advance()

            energy.walk(
                y,
                x if level.pull else None,
                steps=level.steps,
                drift=level.drift,
                pull=level.pull,
                noise_std=level.noise_std,
                rng=(seed, draw + 1, first_sample),
                rescale=level.rescale,
                first_bad=first_bad,
                backend=self.backend,
                each=each,
                observed=recorder.kind == "steps" or hold is not FREE,
            )
            x = y
            recorder.record("levels", x, level, energy, rescaled=True)
        self._raise_if_diverged(first_bad, first_sample)
        return x, energy

    def _finish(self, x: Tensor, energy: LevelEnergy, denoise_scale: float) -> Tensor:
        """Tweedie's denoising step and the clamp, for images; returns float32 (float64)."""
        if not self.model.is_image:
            return x
        schedule, level = self.model.schedule, self.model.schedule.level(1)
        gradient = energy.gradient(level.scale * x)
        score = (denoise_scale * level.scale / level.energy_variance) * gradient
        clean = (x + float(schedule.noise_variance[0]) * score) / math.sqrt(schedule.alpha_bar[0])
        return clean.clamp(-1.0, 1.0)

    def _raise_if_diverged(self, first_bad: Tensor, first_sample: int) -> None:
        code = int(first_bad)
        if code == NEVER:
            return
        draw, sample = code >> 31, first_sample + (code & (2**31 - 1))
        level, step = self.model.schedule.levels + 1 - (draw >> 16), draw & 0xFFFF
        raise ChainDiverged(
            f"the chain of sample {sample} left the finite numbers at level {level}, step {step}; "
            "use more steps, a smaller step multiplier or less guidance, or check the weights",
            level=level,
            step=step,
            sample=sample,
        )
