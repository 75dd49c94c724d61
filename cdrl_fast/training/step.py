"""One cooperative iteration: from a batch of data to both networks' gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cdrl_fast.engine import LevelEnergy, Terms, frozen_energy
from cdrl_fast.engine.energy import GpuImageEnergy
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.networks import MLPEnergy, ResNetEnergy, UNetInitializer
from cdrl_fast.networks.kernels import Kernels, using_kernels
from cdrl_fast.networks.layers import dropout_from
from cdrl_fast.networks.recompute import set_recompute
from cdrl_fast.networks.spectral_norm import network_power_iteration
from cdrl_fast.ops.dispatch import reason
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.train_conv3x3 import train_conv3x3
from cdrl_fast.ops.train_norm_silu import train_norm_silu
from cdrl_fast.precision import Precision
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.distributed import Group, SharedNetwork, unsharded
from cdrl_fast.training.levels import LevelTable, NoiseTable, noised_pair, per_sample
from cdrl_fast.training.noise import TrainingDraws

# Indices of the training draws (`batches` has two more); step k adds k to the initializer's.
NOISE, POSTERIOR, LEVEL, DROPOUT, INITIALIZER = 0, 1, 2, 16, 2**16


def _kernels(model: CDRL, precision: Precision) -> Kernels | None:
    """What computes the losses of the library's networks for images on CPUs, in float32."""
    device = next(model.parameters()).device
    networks = (type(model.energy), type(model.initializer))
    ours = networks in ((ResNetEnergy, UNetInitializer), (ResNetEnergy, type(None)))
    if not ours or precision.name == "fp64" or reason("native", device) is not None:
        return None
    return Kernels(train_conv3x3, train_norm_silu)


def moved(first_bad: Tensor, samples: int) -> Tensor:
    """``first_bad`` of a part of a batch that begins after so many samples, as the batch's."""
    return torch.where(first_bad == NEVER, first_bad, first_bad + samples)


class Iteration:
    """Leaves in the parameters the gradients of both losses, for one batch.

    With t uniform per sample: f⁺ at m_t x_{t-1} from the data; y_0 from the initializer; K Langevin
    steps to y_K, without autograd; the energy's loss is the mean of w_t (f(y_K) - f⁺), the
    initializer's the mean of ‖y_K - y_0‖². Each part's gradient is taken as soon as its loss is
    known, so that no two of them hold their activations at a time. All is a mean over samples: of
    ``config.accumulate`` parts, one after the other, and over all processes.

    Args:
        model: in its dtype, on its device.
        config: seed, variance_reduction, recompute, accumulate and shard are read.
        precision: of the chain, and, by autocast, of the losses; on CPUs the library's networks
            for images have kernels for those, which compute in float32.
        group: the processes that share the batch.

    Attributes:
        scaler: of the losses, see `Precision.scaler`; the gradients are scaled by it.

    Source: Zhu, Xie, Wu, Gao, ICLR 2024, algorithm 1.
    """

    def __init__(
        self, model: CDRL, config: TrainConfig, precision: Precision, group: Group
    ) -> None:
        self.model, self.config, self.precision = model, config, precision
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.scaler = precision.scaler(self.device)
        self._levels = LevelTable.of(model, self.device, self.dtype)
        self._noising = NoiseTable.of(model.schedule, self.device, self.dtype)
        self._chain = frozen_energy(model.energy, device=self.device, precision=precision)
        # Ours run their power iterations apart, so that both phases are the same function.
        self._ours = type(model.energy) in (ResNetEnergy, MLPEnergy)
        self._alone = group.size == 1
        self._kernels = _kernels(model, precision)
        set_recompute(model, config.recompute)
        self._energy = SharedNetwork(model.energy, group, shard=config.shard)
        self._initializer = None
        if model.initializer is not None:
            self._initializer = SharedNetwork(model.initializer, group, shard=config.shard)

    @property
    def capturable(self) -> bool:
        """Whether it may run as a CUDA graph: launches alone, which wait for no other process."""
        return (
            self.config.graph == "auto"
            and self.device.type == "cuda"
            and self._alone
            and isinstance(self._chain, GpuImageEnergy)
            and type(self.model.initializer) in (UNetInitializer, type(None))
        )

    def draws(self, first: int | Tensor) -> TrainingDraws:
        """The noise of a batch whose first sample has this index in the noise stream."""
        return TrainingDraws(self.config.seed, first, self.device, self.dtype)

    def __call__(self, x0: Tensor, label: Tensor | None, first: int | Tensor) -> dict[str, Tensor]:
        """Gradients of a batch.

        Args:
            x0, label: this process's share of the data (batch, …), and its labels (batch,) or None.
            first: the noise stream's index of the first sample, see `TrainingDraws`.

        Returns:
            0-d tensors: ``energy_loss``, ``energy_gap`` (the mean of f⁺ - f⁻), with an initializer
            ``initializer_loss``: means over this process's share; and ``first_bad``, int64, its
            chain's (see `langevin_step`).
        """
        self.model.zero_grad(set_to_none=True)
        parts = self.config.accumulate
        size, draws = len(x0) // parts, self.draws(first)
        found: list[dict[str, Tensor]] = []
        with (
            unsharded(self.model.energy),
            fp32_precision(self.precision.fp32_precision),
            using_kernels(self.model, self._kernels),
        ):
            if self._ours:
                network_power_iteration(self.model.energy)
            self._chain.refresh()
            for i in range(parts):
                some = slice(i * size, (i + 1) * size)
                labels = None if label is None else label[some]
                part = draws.after(i * size)
                found.append(self._part(x0[some], labels, part, last=i == parts - 1))
                found[-1]["first_bad"] = moved(found[-1]["first_bad"], i * size)
        means = {k: torch.stack([part[k] for part in found]) for k in found[0]}
        first_bad = means.pop("first_bad").min()
        return {**{k: v.mean() for k, v in means.items()}, "first_bad": first_bad}

    def _part(
        self, x0: Tensor, label: Tensor | None, draws: TrainingDraws, *, last: bool
    ) -> dict[str, Tensor]:
        """Adds the gradients of a part of the batch; after the last one they are complete."""
        energy = self.model.energy
        energy.train(not self._ours)
        level, x_noisy, x_clean = self.noised(x0, draws)

        def positive_phase() -> Tensor:
            with self._energy.summing(last=False):
                return self._phase(per_sample(level.scale, x_clean) * x_clean, level, label, -1.0)

        # Other people's energies may change in train mode, so theirs comes before the chain. Ours
        # leaves its gradients late: the initializer's graph is the largest thing in memory.
        positive = None if self._ours else positive_phase()
        found: dict[str, Tensor] = {}
        with self._dropout(draws), self._summing_initializer(last):
            proposal = self._propose(x_noisy, level, label, draws)
            energy.eval()
            revised, found["first_bad"] = self.revise(
                proposal.detach(), x_noisy, level, label, draws
            )
            if self._initializer is not None:
                loss = (revised - proposal).square().flatten(1).sum(dim=1).mean()
                self._backward(loss)
                found["initializer_loss"] = loss.detach()
                del loss
        del proposal
        positive = positive_phase() if positive is None else positive
        with self._energy.summing(last=last):
            negative = self._phase(revised, level, label, 1.0)
        found["energy_loss"] = (level.loss_weight * (negative - positive)).mean()
        found["energy_gap"] = (positive - negative).mean()
        return found

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self._kernels else self.precision.autocast(self.device)

    def _summing_initializer(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if self._initializer is None else self._initializer.summing(last=last)

    def _phase(self, y: Tensor, level: LevelTable, label: Tensor | None, sign: float) -> Tensor:
        """f(y), having added the gradient of ± mean(w_t f(y)) to the parameters'."""
        with self._autocast():
            value = self._energy(y, level.logsnr, label)
        value = value.to(self.dtype)
        self._backward(sign * (level.loss_weight * value).mean())
        return value.detach()

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss / self.config.accumulate).backward()  # type: ignore[no-untyped-call]

    def noised(self, x0: Tensor, draws: TrainingDraws) -> tuple[LevelTable, Tensor, Tensor]:
        """The samples' levels, x_t and x_{t-1}."""
        t = draws.randint(len(x0), self.model.schedule.levels, LEVEL) + 1
        reduced = self.config.variance_reduction
        posterior = None if reduced else draws.normal(x0, POSTERIOR)
        pair = noised_pair(self._noising, x0, t, draws.normal(x0, NOISE), posterior)
        return self._levels.at(t), *pair

    def _dropout(self, draws: TrainingDraws) -> AbstractContextManager[None]:
        """Masks from the noise stream; until the gradient, for which they may be drawn again."""
        if self.model.initializer is None:
            return nullcontext()
        return dropout_from(
            self.model.initializer, lambda shape, j: draws.uniform(shape, DROPOUT + j)
        )

    def _propose(
        self, x_noisy: Tensor, level: LevelTable, label: Tensor | None, draws: TrainingDraws
    ) -> Tensor:
        """y_0: the initializer's mean with its noise; x_t itself without an initializer."""
        if self._initializer is None:
            return x_noisy
        self._initializer.network.train()
        with self._autocast():
            mean = self._initializer(x_noisy, level.logsnr_noisy, label)
        mean = mean.to(self.dtype)
        return mean + per_sample(level.init_std, mean) * draws.normal(mean, INITIALIZER)

    def revise(
        self,
        y: Tensor,
        anchor: Tensor,
        level: LevelTable,
        label: Tensor | None,
        draws: TrainingDraws,
    ) -> tuple[Tensor, Tensor]:
        """y_K: K Langevin steps from y_0, without gradients to parameters; and ``first_bad``."""
        first_bad = torch.full((), NEVER, dtype=torch.int64, device=self.device)
        y = y.clone()
        LevelEnergy(self._chain.at(level.logsnr, Terms(labels=(label,)))).langevin_(
            y,
            anchor,
            steps=self.model.schedule.steps,
            drift=0.5,
            pull=level.pull,
            noise_std=level.noise_std,
            rng=draws.state(INITIALIZER + 1),
            first_bad=first_bad,
        )
        return y, first_bad
