"""CUDA graphs of chains: captured once, then replayed for other seeds, labels and weights.

A chain on its own buffers is a list of kernel launches that depends on shapes and steps alone. The
place in the noise stream, the inputs that depend on level and label, and the weights are read from
fixed addresses, whose contents a replay can change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from cdrl_fast.engine import Context, EnergyAt, FrozenModel, Terms, take_steps
from cdrl_fast.engine.cuda_graph import capture
from cdrl_fast.engine.frozen import Proposal
from cdrl_fast.model.schedule import Level, StepPlan
from cdrl_fast.ops.keys import ChainKeys, DeviceKey
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.phase import Phase
from cdrl_fast.ops.philox import rng_state, signed
from cdrl_fast.sampling.chain import Chain

MAX_GRAPHS = 4
"""Limit of cached graphs, because each one keeps the memory of its chain."""
Graph = TypeVar("Graph")


def unavailable_reason(networks: FrozenModel) -> str | None:
    """Return why chains of these networks cannot be captured; None where they can."""
    if networks.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, not {networks.device.type}"
    if not networks.supports_graph:
        return "it is for the library's own energies of images, in other precisions than fp64"
    return None


class StepGraph:
    """The transition that replays one captured Langevin step; it serves all levels.

    Args:
        networks: the networks; the addresses of their weights must not change.
        shape: shape of the batch.
        terms: terms of each network, `Terms.in_tensors`; a call takes energies of others with the
            same `terms_signature`.
    """

    def __init__(
        self,
        networks: FrozenModel,
        shape: tuple[int, ...],
        terms: Sequence[Terms],
    ) -> None:
        options: dict[str, Any] = {"dtype": networks.dtype, "device": networks.device}
        self._y, self._anchor = torch.zeros(shape, **options), torch.zeros(shape, **options)
        self._coefficients = torch.zeros((4, 1), **options)
        self._rng = rng_state(seed=0, draw=0, device=networks.device)
        self._first_bad = torch.full((), NEVER, dtype=torch.int64, device=networks.device)
        # A call replaces the inputs, so any level will do.
        self._energy = networks.at(0.0, terms)
        with torch.no_grad():
            self._replay = capture(self._launch, networks.device)
        # A larger batch replaces the networks' buffers, but this graph still writes into these.
        self._buffers = networks.buffers()

    def __call__(
        self, energy: EnergyAt, y: Tensor, anchor: Tensor | None, phase: Phase, context: Context
    ) -> None:
        """Take the steps of a phase; arguments as `EnergyAt.langevin_`.

        Nobody may look at each step, because ``y`` changes only at the end.
        """
        _copy(self._energy.inputs(), energy.inputs())
        self._y.copy_(y)
        self._anchor.copy_(y if anchor is None else anchor)
        self._first_bad.copy_(context.first_bad)
        key = phase.key + 1
        self._rng.copy_(rng_state(**key._asdict(), device=self._rng.device))
        for row, value in zip(self._coefficients, (*phase.coefficients[:3], 1.0), strict=True):
            row.fill_(value)

        def step(k: int) -> None:
            if k == phase.steps:
                self._coefficients[3].fill_(phase.rescale)
            self._replay()

        take_steps(step, phase.steps, context)
        y.copy_(self._y)
        context.first_bad.copy_(self._first_bad)

    def _launch(self) -> None:
        """Launch one step with the current coefficients at the current place in the stream."""
        key: Any = DeviceKey(self._rng)
        drift, pull, noise_std, rescale = self._coefficients
        phase = Phase(1, drift, pull, noise_std, rescale, key)
        self._energy.langevin_(self._y, self._anchor, phase, Context(self._first_bad))


class _Levels:
    """The networks at each level of a step plan, whose inputs a graph reads from fixed memory."""

    def __init__(
        self, networks: FrozenModel, levels: Sequence[Level], terms: Sequence[Terms]
    ) -> None:
        self.device, self.backend, self.noise = networks.device, networks.backend, networks.noise
        self._networks, self._levels = networks, levels
        self._energies = {lv.logsnr: networks.at(lv.logsnr, terms) for lv in levels}
        self._proposals = {
            lv.logsnr_noisy: networks.proposal(lv.logsnr_noisy, terms) for lv in levels
        }

    def at(self, logsnr: float, terms: Sequence[Terms]) -> EnergyAt:
        return self._energies[logsnr]

    def proposal(self, logsnr: float, terms: Sequence[Terms]) -> Proposal | None:
        return self._proposals[logsnr]

    def load(self, terms: Sequence[Terms]) -> None:
        """Copy the inputs of other terms, with the current weights, into the same memory."""
        for logsnr, energy in self._energies.items():
            _copy(energy.inputs(), self._networks.at(logsnr, terms).inputs())
        for logsnr, proposal in self._proposals.items():
            new = self._networks.proposal(logsnr, terms)
            if proposal is not None and new is not None:
                _copy(proposal.inputs(), new.inputs())


class ChainGraph:
    """The complete chain of one batch size and step plan, with the denoising step, as one graph.

    Args:
        chain: the chain; the addresses of its networks' weights must not change.
        networks: the chain's networks.
        n: number of samples.
        plan: Langevin steps of each level.
        terms: terms of each network, `Terms.in_tensors`; `run` takes others with the same
            `terms_signature`.
        denoise_scale: as in `SampleRequest`.
    """

    def __init__(
        self,
        chain: Chain,
        networks: FrozenModel,
        n: int,
        plan: StepPlan,
        terms: Sequence[Terms],
        denoise_scale: float,
    ) -> None:
        schedule = chain.model.schedule
        levels = [schedule.level(t, plan) for t in range(schedule.levels, 0, -1)]
        self._levels = _Levels(networks, levels, terms)
        self._place = torch.zeros(2, dtype=torch.int64, device=networks.device)
        keys = ChainKeys(self._place[0], self._place[1], schedule.levels)
        self._chain = replace(chain, networks=self._levels, keys=keys, hooks=())

        def launch() -> None:
            self._chain.first_bad.fill_(NEVER)
            self._samples = self._chain.denoise(self._chain.run(n, plan, terms), denoise_scale)

        with torch.no_grad():
            self._replay = capture(launch, networks.device)
        # A larger batch replaces the networks' buffers, but this graph still writes into these.
        self._buffers = networks.buffers()

    def run(self, keys: ChainKeys, terms: Sequence[Terms], first_bad: Tensor) -> Tensor:
        """Return the denoised samples of other keys and terms; write ``first_bad``."""
        self._levels.load(terms)
        self._place[0].fill_(signed(int(keys.seed)))
        self._place[1].fill_(int(keys.first_sample))
        self._replay()
        first_bad.copy_(self._chain.first_bad)
        return self._samples.clone()


@dataclass
class ReplayedChain(Chain):
    """A chain that a `ChainGraph` draws, denoising step included.

    Attributes:
        graph: the captured chain.
    """

    graph: ChainGraph = field(kw_only=True)

    def run(self, n: int, plan: StepPlan, terms: Sequence[Terms]) -> Tensor:
        """Return n denoised samples."""
        return self.graph.run(self.keys, terms, self.first_bad)

    def denoise(self, x: Tensor, scale: float) -> Tensor:
        """Return x, which is denoised already."""
        return x


class GraphCache:
    """The most recently used graphs, by the arguments that their launches depend on."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, capture: Callable[[], Graph]) -> Graph:
        """Return the graph of a key; capture it if the cache has none."""
        if key not in self._graphs:
            # The oldest graph goes first, so that the capture can use its memory.
            while len(self._graphs) >= MAX_GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[key] = capture()
        self._graphs.move_to_end(key)
        graph: Graph = self._graphs[key]
        return graph


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
