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
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.schedule import NoiseSchedule, Steps
from cdrl_fast.networks.layers import dropout_from
from cdrl_fast.networks.spectral_norm import fix_weights, static_weights
from cdrl_fast.ops.keys import ChainKeys, Key, TrainingKeys
from cdrl_fast.ops.normal import reference as stream

NoiseSource = Literal["stream", "torch"]


@dataclass(frozen=True)
class Source:
    """A source of random numbers: the noise stream at a key, or torch's global generator."""

    kind: NoiseSource
    device: torch.device
    dtype: torch.dtype

    def normal(self, shape: tuple[int, ...], key: Key) -> Tensor:
        """Return standard normal noise of a shape (batch, …)."""
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        if self.kind == "torch":
            return torch.randn(shape, **options)
        return stream.normal(shape, **key._asdict(), **options)

    def uniform(self, shape: tuple[int, ...], key: Key) -> Tensor:
        """Return uniform float32 numbers of a shape (batch, …)."""
        if self.kind == "torch":
            return torch.rand(shape, device=self.device)
        return key.uniform(shape, device=self.device)

    def randint(self, samples: int, high: int, key: Key) -> Tensor:
        """Return one integer in [0, high) per sample, int64."""
        if self.kind == "torch":
            return torch.randint(high, (samples,), device=self.device)
        return key.randint(samples, high, device=self.device)


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
    source, keys = Source(noise, device, dtype), ChainKeys(seed, first_sample, schedule.levels)
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

    x = source.normal(shape, keys.start())
    for t in range(schedule.levels, 0, -1):
        level = schedule.level(t, plan)
        key = keys.proposal(t, level.steps)
        y = x
        if model.initializer is not None:
            y = guided(model.initializer, x, level.logsnr_noisy)
            y = y + level.init_std * source.normal(shape, key)
        for k in range(1, level.steps + 1):
            recovery = level.pull * (y - x)
            y = y + level.drift * gradient(y, level.logsnr) - recovery
            y = y + level.noise_std * source.normal(shape, key + k)
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
    schedule: NoiseSchedule, x0: Tensor, t: Tensor, noise: Tensor, posterior_noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return x_t and x_{t-1} for levels t, int64 (batch,).

    Both have the same ``noise``, or with ``posterior_noise`` x_{t-1} ~ q(x_{t-1} | x_t, x_0).
    """

    def at(values: Tensor, index: Tensor) -> Tensor:
        return values.to(x0)[index].reshape(-1, *[1] * (x0.dim() - 1))

    alpha_bar, variance = torch.tensor(schedule.alpha_bar), torch.tensor(schedule.noise_variance)
    x_t = at(alpha_bar.sqrt(), t) * x0 + at(variance.sqrt(), t) * noise
    if posterior_noise is None:
        return x_t, at(alpha_bar.sqrt(), t - 1) * x0 + at(variance.sqrt(), t - 1) * noise
    # Entry t - 1 of the tables below belongs to the transition t → t - 1.
    r = torch.tensor(schedule.logsnr).diff().exp()
    mean = at(r * (alpha_bar[:-1] / alpha_bar[1:]).sqrt(), t - 1) * x_t
    mean = mean + at((1 - r) * alpha_bar[:-1].sqrt(), t - 1) * x0
    posterior = variance[:-1] / variance[1:] * (1 - alpha_bar[1:] / alpha_bar[:-1])
    return x_t, mean + at(posterior.sqrt(), t - 1) * posterior_noise


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
    source, keys = Source(noise, x0.device, x0.dtype), TrainingKeys(seed, iteration * n)
    t = 1 + source.randint(n, schedule.levels, keys.level())

    def constant(name: str) -> Tensor:
        levels = [schedule.level(i) for i in range(1, schedule.levels + 1)]
        return x0.new_tensor([getattr(level, name) for level in levels])[t - 1]

    def spread(name: str) -> Tensor:
        return constant(name).reshape(-1, *[1] * (x0.dim() - 1))

    if label is not None:
        uniform = source.uniform((n, 1), keys.label_drop())[:, 0]
        label = torch.where(uniform < label_drop, 0, label)
    eps = source.normal(shape, keys.noise())
    posterior_eps = None if variance_reduction else source.normal(shape, keys.posterior())
    x_t, x_before = noised_pair(schedule, x0, t, eps, posterior_eps)
    logsnr, energy, initializer = constant("logsnr"), model.energy, model.initializer
    energy.train()
    positive = energy(spread("scale") * x_before, logsnr, label)
    proposal = x_t
    if initializer is not None:
        initializer.train()
        with dropout_from(initializer, lambda s, j: source.uniform(tuple(s), keys.dropout(j))):
            mean = initializer(x_t, constant("logsnr_noisy"), label)
        proposal = mean + spread("init_std") * source.normal(shape, keys.proposal())
    energy.eval()
    y, pull, noise_std = proposal.detach(), spread("pull"), spread("noise_std")
    with static_weights(energy):
        for k in range(1, schedule.steps + 1):
            gradient = input_gradient(lambda v: energy(v, logsnr, label), y)
            y = y + 0.5 * gradient - pull * (y - x_t)
            y = y + noise_std * source.normal(shape, keys.proposal() + k)
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
