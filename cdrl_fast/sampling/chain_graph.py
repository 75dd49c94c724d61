"""CUDA graphs of chains: captured once, then replayed for other seeds, labels and weights.

A chain on its own buffers is a list of kernel launches that depends on shapes and steps alone. The
position in the noise stream, the inputs that depend on level and label, and the weights are read
from fixed addresses, whose contents a replay can change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cdrl_fast.engine.cuda_graph import capture
from cdrl_fast.engine.frozen import FrozenModel, LevelEnergy, Proposal
from cdrl_fast.engine.terms import Terms
from cdrl_fast.model.schedule import Level
from cdrl_fast.ops import langevin_step_, rng_state
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.philox import Purpose, level_draw, signed

MAX_GRAPHS = 4
"""Limit of cached graphs, because each one keeps the memory of its chain."""


def unavailable_reason(frozen: FrozenModel) -> str | None:
    """Return why chains of these networks cannot be captured; None where they can."""
    if frozen.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, not {frozen.device.type}"
    if not frozen.steps_by_launches:
        return "it is for the library's own energies of images, in other precisions than fp64"
    return None


class ChainGraph:
    """The captured chain of one batch size and one step plan.

    Args:
        frozen: the networks; the addresses of their weights must not change.
        levels: constants of the levels T … 1, in the order of sampling.
        shape: shape of the batch.
        terms: terms of each network; `run` takes others with the same signature.
        full_chain: whether one graph contains the complete chain with ``denoise``. Otherwise the
            graph is one Langevin step; it serves all levels, and the chain can be interrupted after
            each step.
        denoise: returns the samples of x_0 and the energy of level 1.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        levels: Sequence[Level],
        shape: tuple[int, ...],
        terms: Sequence[Terms],
        *,
        full_chain: bool,
        denoise: Callable[[Tensor, LevelEnergy], Tensor],
    ) -> None:
        self._frozen, self._levels = frozen, levels
        self._full_chain, self._denoise = full_chain, denoise
        terms = [part.in_tensors(frozen.device, frozen.dtype) for part in terms]
        options: dict[str, Any] = {"dtype": frozen.dtype, "device": frozen.device}
        self._x, self._y = torch.zeros(shape, **options), torch.zeros(shape, **options)
        self._samples = torch.zeros(shape, **options)
        self._rng = rng_state(seed=0, draw=0, device=frozen.device)
        self.first_bad = torch.full((), NEVER, dtype=torch.int64, device=frozen.device)
        self._energies = [frozen.at(level.logsnr, terms) for level in levels]
        self._proposals = [frozen.proposal(level.logsnr_noisy, terms) for level in levels]
        # The graph of one step uses this energy, whose inputs are replaced per level, and reads the
        # coefficients of the step from the table.
        self._step_energy = frozen.at(levels[0].logsnr, terms)
        self._max_steps = max(level.steps for level in levels)
        table = [self._coefficient_rows(level) for level in levels]
        self._table = torch.tensor(table, **options).flatten(0, 1)
        self._row = torch.zeros(1, dtype=torch.int64, device=frozen.device)
        self._coefficients = torch.zeros((4, 1), **options)
        with torch.no_grad():
            self._replay = capture(
                self._launch_chain if full_chain else self._launch_step, frozen.device
            )
        # A larger batch replaces the networks' buffers, but this graph still writes into these.
        self._buffers = frozen.buffers()

    @torch.no_grad()
    def run(
        self,
        terms: Sequence[Terms],
        seed: int,
        first_sample: int,
        advance: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Draw samples; set ``first_bad``.

        Args:
            terms: terms of each network, with the signature of those at the capture.
            seed, first_sample: seed and index of the first sample in the noise stream.
            advance: called once per Langevin step: after each one, or after the chain if one graph
                contains all of them.

        Returns:
            The samples, in memory that the next run overwrites.
        """
        frozen = self._frozen
        terms = [part.in_tensors(frozen.device, frozen.dtype) for part in terms]
        for level, energy, proposal in zip(
            self._levels, self._energies, self._proposals, strict=True
        ):
            _copy(energy.inputs(), frozen.at(level.logsnr, terms).inputs())
            if proposal is not None:
                new_proposal = frozen.proposal(level.logsnr_noisy, terms)
                assert new_proposal is not None
                _copy(proposal.inputs(), new_proposal.inputs())
        self._rng[0].fill_(signed(seed))
        self._rng[2].fill_(first_sample)
        self.first_bad.fill_(NEVER)
        if self._full_chain:
            self._replay()
            for _ in range(sum(level.steps for level in self._levels)):
                advance()
        else:
            self._run_levels(partial(self._replay_steps, advance=advance))
            self._samples.copy_(self._denoise(self._x, self._energies[-1]))
        return self._samples

    def _run_levels(self, take_steps: Callable[[int], None]) -> None:
        """Run all levels, from x_T to x_0; ``take_steps(i)`` takes the i-th level's steps."""
        self._x.zero_()
        self._add_noise_(self._x, Purpose.SAMPLING.draw(0), 1.0)
        for i, (level, proposal) in enumerate(zip(self._levels, self._proposals, strict=True)):
            self._propose(level, proposal)
            take_steps(i)
            self._x.copy_(self._y)

    def _propose(self, level: Level, proposal: Proposal | None) -> None:
        draw = Purpose.SAMPLING.draw(level_draw(level.t, len(self._levels)))
        if proposal is None:
            self._y.copy_(self._x)
            self._rng[1].fill_(draw + 1)
        else:
            self._y.copy_(proposal(self._x))
            self._add_noise_(self._y, draw, level.init_std)

    def _add_noise_(self, y: Tensor, draw: int, std: float) -> None:
        """Add noise to y in place, and set the stream to the next draw."""
        self._rng[1].fill_(draw)
        langevin_step_(y, y, None, drift=0.0, pull=0.0, noise_std=std, rng=self._rng)

    def _launch_chain(self) -> None:
        """Launch the complete chain; this is what the graph of a chain captures."""
        self._run_levels(self._launch_steps)
        self._samples.copy_(self._denoise(self._x, self._energies[-1]))

    def _launch_steps(self, i: int) -> None:
        """Launch all Langevin steps of the i-th level."""
        level = self._levels[i]
        for step in range(1, level.steps + 1):
            self._energies[i].step_(
                self._y,
                self._x if level.pull else None,
                drift=level.drift,
                pull=level.pull,
                noise_std=level.noise_std,
                rescale=level.rescale if step == level.steps else 1.0,
                rng=self._rng,
                first_bad=self.first_bad,
                backend="auto",
            )

    def _replay_steps(self, i: int, advance: Callable[[], object]) -> None:
        """Replay the graph of a step for each Langevin step of the i-th level."""
        _copy(self._step_energy.inputs(), self._energies[i].inputs())
        self._row.fill_(i * self._max_steps)
        for _ in range(self._levels[i].steps):
            self._replay()
            advance()

    def _launch_step(self) -> None:
        """Launch one Langevin step with the coefficients of the table's next row."""
        self._coefficients.copy_(self._table.index_select(0, self._row).T)
        self._row.add_(1)
        drift, pull, noise_std, rescale = self._coefficients
        self._step_energy.step_(
            self._y,
            self._x,
            drift=drift,
            pull=pull,
            noise_std=noise_std,
            rescale=rescale,
            rng=self._rng,
            first_bad=self.first_bad,
            backend="auto",
        )

    def _coefficient_rows(self, level: Level) -> list[list[float]]:
        """Return (drift, pull, noise_std, rescale) per step, padded to the maximal step count."""
        coefficients = [level.drift, level.pull, level.noise_std]
        rows = [[*coefficients, 1.0] for _ in range(level.steps)]
        rows[-1][3] = level.rescale
        return rows + [[0.0, 0.0, 0.0, 1.0]] * (self._max_steps - level.steps)


class GraphCache:
    """The most recently used captured chains, by the arguments that their launches depend on."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, ChainGraph] = OrderedDict()

    def get(self, key: Hashable, capture: Callable[[], ChainGraph]) -> ChainGraph:
        """Return the chain of a key; capture it if the cache has none."""
        if key not in self._graphs:
            # The oldest graph goes first, so that the capture can use its memory.
            while len(self._graphs) >= MAX_GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[key] = capture()
        self._graphs.move_to_end(key)
        return self._graphs[key]


def terms_signature(terms: Sequence[Terms]) -> Hashable:
    """Return the numbers of terms, weights and labels, on which the launches depend.

    A weight or label counts 1 if it serves all samples, else the number of samples.
    """
    return tuple(_signature(network_terms) for network_terms in terms)


def _signature(terms: Terms) -> Hashable:
    weights = (*terms.weights, *terms.initializer_weights)
    return (
        tuple(len(w) if isinstance(w, Tensor) else 1 for w in weights),
        tuple(None if t is None else len(t) for t in terms.labels),
    )


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
