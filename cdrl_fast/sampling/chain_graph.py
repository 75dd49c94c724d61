"""CUDA graphs of a sampler's chain: launched once, then replayed for other seeds, labels, weights.

A chain over memory of its own is a list of launches that depends on shapes and steps alone: the
place in the noise stream, what level and labels decide, and the weights are read from fixed places.
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

MOST_GRAPHS = 4
"""Kept at a time: each holds its chain's memory."""


def unavailable(frozen: FrozenModel) -> str | None:
    """Why a chain of these networks can't be captured; None where it can."""
    if frozen.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, not {frozen.device.type}"
    if not frozen.steps_by_launches:
        return "it is for the library's own energies of images, in other precisions than fp64"
    return None


class ChainGraph:
    """A sampler's chain for one batch size and one plan of steps.

    Args:
        frozen: the model's networks; its weights are to stay where they are.
        levels: their constants, the first one sampled first.
        shape: of the batch.
        terms: of each network; others of the same form may follow.
        whole: one graph for the whole chain, ``finish`` included; otherwise one for a Langevin
            step, which serves all levels and can be interrupted between any two.
        finish: what follows the last level, a function of x_0 and that level's energy.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        levels: Sequence[Level],
        shape: tuple[int, ...],
        terms: Sequence[Terms],
        *,
        whole: bool,
        finish: Callable[[Tensor, LevelEnergy], Tensor],
    ) -> None:
        self._frozen, self._levels, self._whole, self._finish = frozen, levels, whole, finish
        terms = [part.in_tensors(frozen.device, frozen.dtype) for part in terms]
        options: dict[str, Any] = {"dtype": frozen.dtype, "device": frozen.device}
        self._x, self._y = torch.zeros(shape, **options), torch.zeros(shape, **options)
        self._result = torch.zeros(shape, **options)
        self._rng = rng_state(seed=0, draw=0, device=frozen.device)
        self.first_bad = torch.full((), NEVER, dtype=torch.int64, device=frozen.device)
        self._energies = [frozen.at(level.logsnr, terms) for level in levels]
        self._proposals = [frozen.proposal(level.logsnr_noisy, terms) for level in levels]
        # Of the graph of a step: the energy that it follows, and every step's coefficients.
        self._energy = frozen.at(levels[0].logsnr, terms)
        self._most = max(level.steps for level in levels)
        self._table = torch.tensor([self._rows(level) for level in levels], **options).flatten(0, 1)
        self._count = torch.zeros(1, dtype=torch.int64, device=frozen.device)
        self._now = torch.zeros((4, 1), **options)
        with torch.no_grad():
            self._replay = capture(self._run_whole if whole else self._step, frozen.device)
        # A larger batch will make larger ones in their place; the graph writes into these.
        self._buffers = frozen.buffers()

    @torch.no_grad()
    def run(
        self,
        terms: Sequence[Terms],
        seed: int,
        first_sample: int,
        each: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """The samples, in memory that the next run writes again; ``first_bad`` is the chains'.

        Args:
            terms: of the same form as the first ones.
            seed, first_sample: of the noise stream.
            each: called after each Langevin step; after all of them where the graph holds all.
        """
        frozen = self._frozen
        terms = [part.in_tensors(frozen.device, frozen.dtype) for part in terms]
        for level, energy, proposal in zip(
            self._levels, self._energies, self._proposals, strict=True
        ):
            _copy(energy.inputs(), frozen.at(level.logsnr, terms).inputs())
            if proposal is not None:
                fresh = frozen.proposal(level.logsnr_noisy, terms)
                assert fresh is not None
                _copy(proposal.inputs(), fresh.inputs())
        self._rng[0].fill_(signed(seed))
        self._rng[2].fill_(first_sample)
        self.first_bad.fill_(NEVER)
        if self._whole:
            self._replay()
            for _ in range(sum(level.steps for level in self._levels)):
                each()
        else:
            self._run(partial(self._replayed_level, each=each))
            self._result.copy_(self._finish(self._x, self._energies[-1]))
        return self._result

    def _run(self, walk: Callable[[int], None]) -> None:
        """All levels, from x_T to x_0; ``walk`` takes the Langevin steps of the i-th one."""
        self._x.zero_()
        self._noise_(self._x, Purpose.SAMPLING.draw(0), 1.0)
        for i, (level, proposal) in enumerate(zip(self._levels, self._proposals, strict=True)):
            self._propose(level, proposal)
            walk(i)
            self._x.copy_(self._y)

    def _propose(self, level: Level, proposal: Proposal | None) -> None:
        draw = Purpose.SAMPLING.draw(level_draw(level.t, len(self._levels)))
        if proposal is None:
            self._y.copy_(self._x)
            self._rng[1].fill_(draw + 1)
        else:
            self._y.copy_(proposal(self._x))
            self._noise_(self._y, draw, level.init_std)

    def _noise_(self, y: Tensor, draw: int, std: float) -> None:
        """Adds noise, and leaves the stream at the next draw."""
        self._rng[1].fill_(draw)
        langevin_step_(y, y, None, drift=0.0, pull=0.0, noise_std=std, rng=self._rng)

    def _run_whole(self) -> None:
        self._run(self._level)
        self._result.copy_(self._finish(self._x, self._energies[-1]))

    def _level(self, i: int) -> None:
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

    def _replayed_level(self, i: int, each: Callable[[], object]) -> None:
        _copy(self._energy.inputs(), self._energies[i].inputs())
        self._count.fill_(i * self._most)
        for _ in range(self._levels[i].steps):
            self._replay()
            each()

    def _step(self) -> None:
        """A step at any level: its coefficients are the table's next row."""
        self._now.copy_(self._table.index_select(0, self._count).T)
        self._count.add_(1)
        drift, pull, noise_std, rescale = self._now
        self._energy.step_(
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

    def _rows(self, level: Level) -> list[list[float]]:
        """drift, pull, noise_std and rescale of each step, filled up to the longest level's."""
        numbers = [level.drift, level.pull, level.noise_std]
        rows = [[*numbers, 1.0] for _ in range(level.steps)]
        rows[-1][3] = level.rescale
        return rows + [[0.0, 0.0, 0.0, 1.0]] * (self._most - level.steps)


class Graphs:
    """The chains that were captured last, by what their launches depend on."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, ChainGraph] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], ChainGraph]) -> ChainGraph:
        """The chain of a key, made if there is none."""
        if key not in self._kept:
            # First the room for it.
            while len(self._kept) >= MOST_GRAPHS:
                self._kept.popitem(last=False)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]


def form_of(terms: Sequence[Terms]) -> Hashable:
    """What launches depend on: how many terms, and whether each part serves all samples or one."""
    return tuple(_form(of_network) for of_network in terms)


def _form(terms: Terms) -> Hashable:
    weights = (*terms.weights, *terms.initializer_weights)
    return (
        tuple(len(w) if isinstance(w, Tensor) else 1 for w in weights),
        tuple(None if t is None else len(t) for t in terms.labels),
    )


def _copy(to: Sequence[Tensor], fresh: Sequence[Tensor]) -> None:
    for old, new in zip(to, fresh, strict=True):
        old.copy_(new)
