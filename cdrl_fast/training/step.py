"""One cooperative iteration: from a batch of data to both networks' gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from cdrl_fast.engine import Context, Terms, frozen_energy
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.networks import MLPEnergy, ResNetEnergy, UNetInitializer
from cdrl_fast.networks.kernels import Kernels, using_kernels
from cdrl_fast.networks.layers import dropout_from
from cdrl_fast.networks.recompute import set_recompute
from cdrl_fast.networks.spectral_norm import network_power_iteration
from cdrl_fast.ops.dispatch import reason
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.ops.keys import Key, TrainingKeys
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.phase import Phase
from cdrl_fast.ops.train_conv3x3 import train_conv3x3
from cdrl_fast.ops.train_norm_silu import train_norm_silu
from cdrl_fast.precision import Precision
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.distributed import DataParallelNetwork, Group, unsharded
from cdrl_fast.training.levels import LevelTable, NoiseTable, noised_pair, per_sample

# Subclasses may compute something else, so types must be equal.
NORMS_ONCE = {ResNetEnergy, MLPEnergy}
"""Energies whose spectral norms are iterated once per iteration, before both phases, so that both
see the same function."""
WITH_KERNELS = {ResNetEnergy, UNetInitializer, type(None)}
"""Networks whose losses have kernels on CPUs and can be captured as a CUDA graph; None stands for a
model without an initializer."""


def _loss_kernels(model: CDRL, precision: Precision) -> Kernels | None:
    """Return the float32 kernels of the losses, or None where torch computes them."""
    device = next(model.parameters()).device
    supported = {type(model.energy), type(model.initializer)} <= WITH_KERNELS
    if not supported or precision.name == "fp64" or reason("native", device) is not None:
        return None
    return Kernels(train_conv3x3, train_norm_silu)


def shift_first_bad(first_bad: Tensor, samples: int) -> Tensor:
    """Return ``first_bad`` of a part of a batch, with the position counted in the batch.

    Args:
        first_bad: see `langevin_step`.
        samples: position in the batch at which the part begins.
    """
    return torch.where(first_bad == NEVER, first_bad, first_bad + samples)


class Iteration:
    """One iteration up to its update: writes both losses' gradients into the parameters.

    With t uniform per sample: f⁺ at m_t x_{t-1} from the data; y_0 from the initializer; K Langevin
    steps to y_K, without autograd; the energy's loss is the mean of w_t (f(y_K) - f⁺), the
    initializer's the mean of ‖y_K - y_0‖². Each term is differentiated as soon as it is known, so
    that the activations of only one are in memory at a time. Losses and gradients are means over
    the samples of ``config.accumulate`` micro-batches, one after the other, and of all processes.

    Args:
        model: the model to train, in its dtype, on its device.
        config: seed, variance_reduction, recompute, accumulate, shard and graph are read.
        precision: precision of the chain and, by autocast, of the losses. On CPUs the losses of the
            library's image networks have kernels, which compute in float32.
        group: the processes that share the batch.

    Attributes:
        scaler: the losses' scaler, see `Precision.scaler`; the gradients are multiplied by it.

    Source: Zhu, Xie, Wu, Gao, ICLR 2024, algorithm 1.
    """

    def __init__(
        self, model: CDRL, config: TrainConfig, precision: Precision, group: Group
    ) -> None:
        self.model, self.config, self.precision = model, config, precision
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.scaler = precision.scaler(self.device)
        self._levels = LevelTable.from_schedule(model.schedule, self.device, self.dtype)
        self._noise_table = NoiseTable.from_schedule(model.schedule, self.device, self.dtype)
        self._chain = frozen_energy(model.energy, device=self.device, precision=precision)
        self._norms_once = type(model.energy) in NORMS_ONCE
        self._single_process = group.size == 1
        self._kernels = _loss_kernels(model, precision)
        set_recompute(model, config.recompute)
        self._energy = DataParallelNetwork(model.energy, group, shard=config.shard)
        self._initializer = None
        if model.initializer is not None:
            self._initializer = DataParallelNetwork(model.initializer, group, shard=config.shard)

    @property
    def capturable(self) -> bool:
        """Whether it can be captured as a CUDA graph: kernels alone, on one GPU, one process."""
        return (
            self.config.graph == "auto"
            and self.device.type == "cuda"
            and self._single_process
            and self._chain.supports_graph
            and type(self.model.initializer) in WITH_KERNELS
        )

    def __call__(
        self, x0: Tensor, label: Tensor | None, first_sample: int | Tensor
    ) -> dict[str, Tensor]:
        """Compute the gradients of a batch; earlier gradients are dropped.

        Args:
            x0: this process's share of the data, (batch, …).
            label: its labels, (batch,), or None.
            first_sample: index in the noise stream of the share's first sample; see `TrainingKeys`.

        Returns:
            0-d tensors: ``energy_loss``, ``energy_gap`` (the mean of f⁺ - f⁻), with an initializer
            ``initializer_loss``, all means over this process's share; and the chain's
            ``first_bad``, int64, see `langevin_step`.
        """
        self.model.zero_grad(set_to_none=True)
        count = self.config.accumulate
        size, keys = len(x0) // count, TrainingKeys(self.config.seed, first_sample)
        logs: list[dict[str, Tensor]] = []
        with (
            unsharded(self.model.energy),
            fp32_precision(self.precision.fp32_precision),
            using_kernels(self.model, self._kernels),
        ):
            if self._norms_once:
                network_power_iteration(self.model.energy)
            self._chain.refresh()
            for i in range(count):
                rows = slice(i * size, (i + 1) * size)
                labels = None if label is None else label[rows]
                log = self._micro_batch(x0[rows], labels, keys.skip(i * size), last=i == count - 1)
                log["first_bad"] = shift_first_bad(log["first_bad"], i * size)
                logs.append(log)
        values = {name: torch.stack([log[name] for log in logs]) for name in logs[0]}
        first_bad = values.pop("first_bad").min()
        return {**{name: v.mean() for name, v in values.items()}, "first_bad": first_bad}

    def _micro_batch(
        self, x0: Tensor, label: Tensor | None, keys: TrainingKeys, *, last: bool
    ) -> dict[str, Tensor]:
        """Add the gradients of a micro-batch; after the last one they are averaged over processes.

        Returns:
            As `__call__`, for the micro-batch.
        """
        energy = self.model.energy
        level, x_noisy, data = self.noised(x0, keys)
        positive_phase = partial(self._phase, data, level, label, sign=-1.0, last=False)
        # A user's energy may change in train mode, so its positive phase comes before the chain. A
        # library energy's comes after it, when the initializer's large graph has been freed.
        energy.train(not self._norms_once)
        positive = None if self._norms_once else positive_phase()
        revised, log = self._cooperate(x_noisy, level, label, keys, last=last)
        energy.eval()
        positive = positive_phase() if positive is None else positive
        negative = self._phase(revised, level, label, sign=1.0, last=last)
        log["energy_loss"] = (level.loss_weight * (negative - positive)).mean()
        log["energy_gap"] = (positive - negative).mean()
        return log

    def noised(self, x0: Tensor, keys: TrainingKeys) -> tuple[LevelTable, Tensor, Tensor]:
        """Return the constants of the samples' levels, x_t, and m_t x_{t-1}, where f⁺ is taken."""
        t = keys.level().randint(len(x0), self.model.schedule.levels, device=self.device) + 1
        level, same_noise = self._levels.at(t), self.config.variance_reduction
        posterior_noise = None if same_noise else self._normal(keys.posterior(), x0.shape)
        noise = self._normal(keys.noise(), x0.shape)
        x_noisy, x_before = noised_pair(self._noise_table, x0, t, noise, posterior_noise)
        return level, x_noisy, per_sample(level.scale, x_before) * x_before

    def _cooperate(
        self,
        x_noisy: Tensor,
        level: LevelTable,
        label: Tensor | None,
        keys: TrainingKeys,
        *,
        last: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Propose y_0, revise it to y_K, and add the gradient of the initializer's loss.

        Without an initializer, y_0 is x_t.

        Returns:
            y_K, and of `__call__`'s values ``first_bad`` and ``initializer_loss``.
        """
        initializer = self._initializer
        if initializer is None:
            revised, first_bad = self.revise(x_noisy, x_noisy, level, label, keys)
            return revised, {"first_bad": first_bad}

        def uniform(shape: torch.Size, layer: int) -> Tensor:
            return keys.dropout(layer).uniform(shape, device=self.device)

        # The backward pass is inside too, because recomputation draws the same masks.
        with dropout_from(initializer.network, uniform), initializer.accumulate(last=last):
            initializer.network.train()
            with self._autocast():
                mean = initializer(x_noisy, level.logsnr_noisy, label)
            mean = mean.to(self.dtype)
            noise = self._normal(keys.proposal(), mean.shape)
            proposal = mean + per_sample(level.init_std, mean) * noise
            del mean, noise
            revised, first_bad = self.revise(proposal.detach(), x_noisy, level, label, keys)
            loss = (revised - proposal).square().flatten(1).sum(dim=1).mean()
            self._backward(loss)
        return revised, {"first_bad": first_bad, "initializer_loss": loss.detach()}

    def revise(
        self,
        y: Tensor,
        anchor: Tensor,
        level: LevelTable,
        label: Tensor | None,
        keys: TrainingKeys,
    ) -> tuple[Tensor, Tensor]:
        """Return y_K, K Langevin steps from y_0 without autograd, and the chain's ``first_bad``."""
        first_bad = torch.full((), NEVER, dtype=torch.int64, device=self.device)
        y = y.clone()
        phase = Phase(
            steps=self.model.schedule.steps,
            drift=0.5,
            pull=level.pull,
            noise_std=level.noise_std,
            rescale=1.0,
            key=keys.proposal(),
        )
        with torch.no_grad():
            energy = self._chain.at(level.logsnr, Terms(labels=(label,)))
            energy.langevin_(y, anchor, phase, Context(first_bad))
        return y, first_bad

    def _phase(
        self, y: Tensor, level: LevelTable, label: Tensor | None, *, sign: float, last: bool
    ) -> Tensor:
        """Return f(y); add the gradient of sign · mean(w_t f(y)) to the parameters' ``grad``."""
        with self._energy.accumulate(last=last):
            with self._autocast():
                value = self._energy(y, level.logsnr, label)
            value = value.to(self.dtype)
            self._backward(sign * (level.loss_weight * value).mean())
        return value.detach()

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss / self.config.accumulate).backward()  # type: ignore[no-untyped-call]

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self._kernels else self.precision.autocast(self.device)

    def _normal(self, key: Key, shape: torch.Size) -> Tensor:
        return key.normal(shape, device=self.device, dtype=self.dtype)
