"""CDRL in plain eager PyTorch: the reference of the tests and a baseline of the benchmarks.

Sampling and training follow the formulas directly, on the networks' own forward and autograd.
``noise="stream"`` draws from the noise stream, so that results can be compared with the library's;
``noise="torch"`` draws with ``torch.randn``, for timing. As in a good eager implementation,
parameters are frozen and spectral norms computed once per chain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.schedule import Steps
from cdrl_fast.networks.layers import dropout_from
from cdrl_fast.networks.spectral_norm import fix_weights, static_weights
from cdrl_fast.ops import philox
from cdrl_fast.ops.normal import reference as stream
from cdrl_fast.ops.philox import Purpose

NoiseSource = Literal["stream", "torch"]


@dataclass(frozen=True)
class Draws:
    """Source of random numbers: the noise stream, or torch's global generator."""

    source: NoiseSource
    purpose: Purpose
    seed: int
    first_sample: int
    device: torch.device
    dtype: torch.dtype

    def normal(self, shape: tuple[int, ...], index: int) -> Tensor:
        """Return standard normal noise of a shape (batch, …), from draw ``index``."""
        if self.source == "torch":
            return torch.randn(shape, device=self.device, dtype=self.dtype)
        return stream.normal(
            shape,
            seed=self.seed,
            draw=self.purpose.draw(index),
            first_sample=self.first_sample,
            device=self.device,
            dtype=self.dtype,
        )

    def uniform(self, shape: tuple[int, ...], index: int) -> Tensor:
        """Return uniform numbers of a shape (batch, …), float32, from draw ``index``."""
        if self.source == "torch":
            return torch.rand(shape, device=self.device)
        return philox.uniform(
            shape,
            seed=self.seed,
            draw=self.purpose.draw(index),
            first_sample=self.first_sample,
            device=self.device,
        )

    def level(self, n: int, levels: int) -> Tensor:
        """Return ``n`` uniform levels in 1 … ``levels``, int64."""
        if self.source == "torch":
            return torch.randint(1, levels + 1, (n,), device=self.device)
        return 1 + philox.randint(
            n,
            levels,
            seed=self.seed,
            draw=self.purpose.draw(2),
            first_sample=self.first_sample,
            device=self.device,
        )


def input_gradient(value: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """Return ∇_y Σ value(y) by autograd, in y's shape and dtype."""
    y = y.detach().requires_grad_(True)
    return torch.autograd.grad(value(y).sum(), y)[0]


@torch.no_grad()
def sample(
    model: CDRL,
    n: int,
    *,
    seed: int = 0,
    steps: Steps = None,
    label: Label = None,
    guidance: float = 0.0,
    first_sample: int = 0,
    denoise_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    noise: NoiseSource = "stream",
) -> Tensor:
    """Draw the samples of `Sampler.sample` in plain PyTorch, equal up to rounding.

    Args:
        model, n, seed, steps, label, guidance, first_sample, denoise_scale: as in `Sampler` and
            `Sampler.sample`, but unchecked.
        dtype: of state and networks, float32 or float64.
        noise: "stream", or "torch" for ``torch.randn`` (other samples, the same distribution).

    Returns:
        (n, …) in ``dtype``, on the model's device.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler, reference
        >>> model = CDRL.from_pretrained("digits")
        >>> plain = reference.sample(model, 2, steps=1)
        >>> fast = Sampler(model, precision="fp32").sample(2, steps=1)
        >>> float((plain - fast).abs().median()) < 1e-4
        True
    """
    device = next(model.parameters(), torch.empty(0)).device
    schedule, shape = model.schedule, (n, *model.sample_shape)
    plan = model.plan(steps)
    labels = model.label_indices(label, n)
    classes = None if labels is None else labels.to(device).expand(n)
    draws = Draws(noise, Purpose.SAMPLING, seed, first_sample, device, dtype)
    model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    fix_weights(model)

    def guided(network: nn.Module, x: Tensor, logsnr: float) -> Tensor:
        level = torch.full((1,), logsnr, device=device, dtype=dtype)
        conditional: Tensor = network(x, level, classes)
        if guidance == 0.0:
            return conditional
        return (1 + guidance) * conditional - guidance * network(x, level, None)

    def gradient(y: Tensor, logsnr: float) -> Tensor:
        with torch.enable_grad():
            return input_gradient(lambda v: guided(model.energy, v, logsnr), y)

    x = draws.normal(shape, 0)
    for t in range(schedule.levels, 0, -1):
        level = schedule.level(t, plan)
        first = (schedule.levels - t + 1) * 2**16
        y = x
        if model.initializer is not None:
            y = guided(model.initializer, x, level.logsnr_noisy)
            y = y + level.init_std * draws.normal(shape, first)
        for k in range(1, level.steps + 1):
            recovery = level.pull * (y - x)
            y = y + level.drift * gradient(y, level.logsnr) - recovery
            y = y + level.noise_std * draws.normal(shape, first + k)
        x = y / (level.scale + 1e-8)
    return denoise(model, x, gradient, denoise_scale) if model.is_image else x


def denoise(
    model: CDRL, x: Tensor, gradient: Callable[[Tensor, float], Tensor], denoise_scale: float = 1.0
) -> Tensor:
    """Return (x + denoise_scale·(1 - ᾱ_0)·∇ log p(x)) / √ᾱ_0, clamped to [-1, 1] (Tweedie).

    ``gradient(y, logsnr)`` is the energy's; ∇ log p is taken at level 1.
    """
    schedule, level = model.schedule, model.schedule.level(1)
    score = level.scale * gradient(level.scale * x, level.logsnr) / level.energy_variance
    x = x + denoise_scale * float(schedule.noise_variance[0]) * score
    return (x / float(schedule.alpha_bar[0]) ** 0.5).clamp(-1, 1)


def noised_pair(
    model: CDRL, x0: Tensor, t: Tensor, draws: Draws, variance_reduction: bool
) -> tuple[Tensor, Tensor]:
    """Return x_t and x_{t-1} for levels t, int64 (batch,).

    With ``variance_reduction`` both have the same noise, else x_{t-1} ~ q(x_{t-1} | x_t, x_0).
    """
    schedule, shape = model.schedule, tuple(x0.shape)

    def at(values: Tensor, index: Tensor) -> Tensor:
        return values.to(x0)[index].reshape(-1, *[1] * (x0.dim() - 1))

    alpha_bar, variance = torch.tensor(schedule.alpha_bar), torch.tensor(schedule.noise_variance)
    eps = draws.normal(shape, 0)
    x_t = at(alpha_bar.sqrt(), t) * x0 + at(variance.sqrt(), t) * eps
    if variance_reduction:
        return x_t, at(alpha_bar.sqrt(), t - 1) * x0 + at(variance.sqrt(), t - 1) * eps
    # Entry t - 1 of the tables below belongs to the transition t → t - 1.
    r = torch.tensor(schedule.logsnr).diff().exp()
    mean = at(r * (alpha_bar[:-1] / alpha_bar[1:]).sqrt(), t - 1) * x_t
    mean = mean + at((1 - r) * alpha_bar[:-1].sqrt(), t - 1) * x0
    posterior = variance[:-1] / variance[1:] * (1 - alpha_bar[1:] / alpha_bar[:-1])
    return x_t, mean + at(posterior.sqrt(), t - 1) * draws.normal(shape, 1)


def training_iteration(
    model: CDRL,
    x0: Tensor,
    label: Tensor | None,
    *,
    energy_optimizer: torch.optim.Optimizer,
    initializer_optimizer: torch.optim.Optimizer | None,
    seed: int = 0,
    iteration: int = 0,
    variance_reduction: bool = True,
    label_drop: float = 0.1,
    clip: float = 1.0,
    noise: NoiseSource = "stream",
) -> dict[str, Tensor]:
    """Run one cooperative training iteration: both losses and both updates.

    Args:
        model: trained in place.
        x0: (batch, …) data, in the model's dtype and on its device.
        label: int64 (batch,), or None.
        energy_optimizer, initializer_optimizer: of the networks' parameters, with their learning
            rates set; without an initializer the latter is None.
        seed: of all noise.
        iteration: number of updates before this one; iteration · batch is the index of the first
            sample in the noise stream.
        variance_reduction, label_drop, clip: as in `TrainConfig`.
        noise: as in `sample`.

    Returns:
        Detached scalars ``energy_loss`` and, with an initializer, ``initializer_loss``, in x0's
        dtype.

    Raises:
        ValueError, TypeError: the networks' own; other arguments are not checked.

    Examples:
        >>> import torch
        >>> from cdrl_fast import CDRL, reference
        >>> model = CDRL.from_pretrained("checkerboard")
        >>> adam, adamw = torch.optim.Adam, torch.optim.AdamW
        >>> losses = reference.training_iteration(
        ...     model, torch.zeros(4, 2), None, energy_optimizer=adam(model.energy.parameters()),
        ...     initializer_optimizer=adamw(model.initializer.parameters()))
        >>> sorted(losses)
        ['energy_loss', 'initializer_loss']
    """
    n, shape, schedule = len(x0), tuple(x0.shape), model.schedule
    draws = Draws(noise, Purpose.TRAINING, seed, iteration * n, x0.device, x0.dtype)
    t = draws.level(n, schedule.levels)

    def constant(name: str) -> Tensor:
        levels = [schedule.level(i) for i in range(1, schedule.levels + 1)]
        return x0.new_tensor([getattr(level, name) for level in levels])[t - 1]

    def spread(name: str) -> Tensor:
        return constant(name).reshape(-1, *[1] * (x0.dim() - 1))

    if label is not None:
        label = torch.where(draws.uniform((n, 1), 3)[:, 0] < label_drop, 0, label)
    x_t, x_before = noised_pair(model, x0, t, draws, variance_reduction)
    logsnr, energy, initializer = constant("logsnr"), model.energy, model.initializer
    energy.train()
    positive = energy(spread("scale") * x_before, logsnr, label)
    proposal = x_t
    if initializer is not None:
        initializer.train()
        with dropout_from(initializer, lambda s, j: draws.uniform(tuple(s), 16 + j)):
            mean = initializer(x_t, constant("logsnr_noisy"), label)
        proposal = mean + spread("init_std") * draws.normal(shape, 2**16)
    energy.eval()
    y, pull, noise_std = proposal.detach(), spread("pull"), spread("noise_std")
    with static_weights(energy):
        for k in range(1, schedule.steps + 1):
            gradient = input_gradient(lambda v: energy(v, logsnr, label), y)
            y = y + 0.5 * gradient - pull * (y - x_t)
            y = y + noise_std * draws.normal(shape, 2**16 + k)
    negative = energy(y, logsnr, label)
    losses = {"energy_loss": (constant("loss_weight") * (negative - positive)).mean()}
    _update(energy_optimizer, losses["energy_loss"], energy, clip)
    if initializer is not None and initializer_optimizer is not None:
        losses["initializer_loss"] = ((y - proposal) ** 2).flatten(1).sum(1).mean()
        _update(initializer_optimizer, losses["initializer_loss"], initializer, clip)
    return {name: loss.detach() for name, loss in losses.items()}


def _update(
    optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module, clip: float
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
