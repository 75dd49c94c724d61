"""`Trainer`: cooperative training of the energy and the initializer, the loop, stop and resume."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdrl_fast import checkpoint
from cdrl_fast.batches import Batches
from cdrl_fast.data import Dataset
from cdrl_fast.engine import LevelEnergy, Terms, chain_precision, energy_plan
from cdrl_fast.errors import ChainDiverged, CheckpointError
from cdrl_fast.levels import LevelTable, noised_pair, per_sample
from cdrl_fast.model import CDRL, CONFIG, WEIGHTS, newest_checkpoint
from cdrl_fast.networks.layers import dropout_from
from cdrl_fast.ops import normal, philox
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.philox import Purpose
from cdrl_fast.run_folder import (
    Interrupt,
    append_log,
    cut_log,
    drop_old_checkpoints,
    training_bar,
)
from cdrl_fast.train_config import TrainConfig

STATE = "training.safetensors"

# Indices of the training draws (`batches` has two more); step k adds k to the initializer's.
NOISE, POSTERIOR, LEVEL, DROPOUT, INITIALIZER = 0, 1, 2, 16, 2**16


class Trainer:
    """Trains a CDRL model cooperatively: the initializer proposes, Langevin dynamics revises, the
    energy learns from the revision and the initializer learns to propose it.

    One iteration, with t uniform per sample: f⁺ at m_t x_{t-1} from the data; y_0 from the
    initializer; K Langevin steps to y_K; then the energy's loss is the mean of w_t (f(y_K) - f⁺)
    and the initializer's the mean of ‖y_K - y_0‖². All noise, dropout and the data's order are pure
    functions of the seed and the iteration, so a resumed run is the run that was not stopped.

    Args:
        model: trained in place, in its dtype, on its device.
        data: what to train on.
        config: see `TrainConfig`.

    Attributes:
        iteration: updates done so far.
        ema: the averaged model, for samples and metrics.
        batches: the data of each iteration.
        precision: of the chain, see `TrainConfig`.

    Raises:
        ValueError: data, or a precision, that does not fit the model.

    Source: Zhu, Xie, Wu, Gao, ICLR 2024, algorithm 1.
    """

    def __init__(self, model: CDRL, data: Dataset, config: TrainConfig | None = None) -> None:
        self.model, self.data = model, data
        self.config = TrainConfig() if config is None else config
        _check_fit(model, data, self.config)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.iteration = 0
        self.seconds = 0.0
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.energy_optimizer = torch.optim.Adam(
            model.energy.parameters(), lr=0.0, betas=(0.9, 0.999)
        )
        self.initializer_optimizer = (
            torch.optim.AdamW(model.initializer.parameters(), lr=0.0, weight_decay=0.0)
            if model.initializer is not None
            else None
        )
        self._levels = LevelTable.of(model, self.device, self.dtype)
        self.precision = chain_precision(
            self.config.precision, model.energy, self.device, state=self.dtype
        )
        self._chain = energy_plan(model.energy, device=self.device, precision=self.precision)
        self.batches = Batches(
            data,
            self.config,
            labelled=model.num_classes > 0,
            device=self.device,
            dtype=self.dtype,
        )

    def step(self) -> dict[str, float]:
        """One training iteration; returns losses, energy gap and gradient norms.

        Raises:
            ChainDiverged: a chain or a loss left the finite numbers; the weights are as before.
        """
        x0, label = self.batches.at(self.iteration)
        level, x_noisy, x_clean = self._noised(x0)
        energy, config = self.model.energy, self.config
        energy.train()
        positive = energy(per_sample(level.scale, x_clean) * x_clean, level.logsnr, label)
        proposal = self._propose(x_noisy, level, label)
        energy.eval()
        revised = self._revise(proposal.detach(), x_noisy, level, label)
        negative = energy(revised, level.logsnr, label)
        energy_loss = (level.loss_weight * (negative - positive)).mean()
        log = {
            "energy_loss": float(energy_loss.detach()),
            "energy_gap": float((positive - negative).detach().mean()),
        }
        if not math.isfinite(log["energy_loss"]):
            self._diverged("the energy's loss", step=self.model.schedule.steps)
        log["energy_grad_norm"] = self._clipped_gradient(energy_loss, energy)
        if self.initializer_optimizer is not None and self.model.initializer is not None:
            loss = (revised - proposal).square().flatten(1).sum(dim=1).mean()
            norm = self._clipped_gradient(loss, self.model.initializer)
            log |= {"initializer_loss": float(loss.detach()), "initializer_grad_norm": norm}
            lr = config.initializer_lr * self._warmup(config.initializer_warmup_offset)
            _update(self.initializer_optimizer, lr)
        # Nothing is updated before every gradient is known to be finite.
        _update(self.energy_optimizer, config.energy_lr * self._warmup(0))
        self.iteration += 1
        self._average()
        return log

    def _rng(self, index: int) -> dict[str, Any]:
        return {
            "seed": self.config.seed,
            "draw": Purpose.TRAINING.draw(index),
            "first_sample": self.iteration * self.config.batch_size,
            "device": self.device,
        }

    def _noise(self, like: Tensor, index: int) -> Tensor:
        return normal(tuple(like.shape), dtype=self.dtype, **self._rng(index))

    def _noised(self, x0: Tensor) -> tuple[LevelTable, Tensor, Tensor]:
        """The samples' levels, x_t and x_{t-1}."""
        schedule = self.model.schedule
        t = philox.randint(len(x0), schedule.levels, **self._rng(LEVEL)) + 1
        reduced = self.config.variance_reduction
        posterior = None if reduced else self._noise(x0, POSTERIOR)
        pair = noised_pair(schedule, x0, t, self._noise(x0, NOISE), posterior)
        return self._levels.at(t), *pair

    def _propose(self, x_noisy: Tensor, level: LevelTable, label: Tensor | None) -> Tensor:
        """y_0: the initializer's mean with its noise; x_t itself without an initializer."""
        if self.model.initializer is None:
            return x_noisy
        initializer = self.model.initializer.train()

        def uniform(shape: torch.Size, j: int) -> Tensor:
            return philox.uniform(shape, **self._rng(DROPOUT + j))

        with dropout_from(initializer, uniform):
            mean: Tensor = initializer(x_noisy, level.logsnr_noisy, label)
        return mean + per_sample(level.init_std, mean) * self._noise(mean, INITIALIZER)

    def _revise(self, y: Tensor, anchor: Tensor, level: LevelTable, label: Tensor | None) -> Tensor:
        """y_K: K Langevin steps from y_0, without gradients to parameters."""
        first_bad = torch.full((), NEVER, dtype=torch.int64, device=self.device)
        y = y.clone()
        self._chain.refresh()
        rng = self._rng(INITIALIZER + 1)
        LevelEnergy(self._chain.at(level.logsnr, Terms(labels=(label,)))).walk(
            y,
            anchor,
            steps=self.model.schedule.steps,
            drift=0.5,
            pull=level.pull,
            noise_std=level.noise_std,
            rng=(rng["seed"], rng["draw"], rng["first_sample"]),
            first_bad=first_bad,
        )
        code = int(first_bad)
        if code != NEVER:
            step = (code >> 31) - Purpose.TRAINING.draw(INITIALIZER)
            self._diverged("a training chain", step=step, sample=code & (2**31 - 1))
        return y

    def _diverged(self, what: str, *, step: int, sample: int = 0) -> None:
        raise ChainDiverged(
            f"iteration {self.iteration}, step {step}: {what} left the finite numbers (sample "
            f"{sample} of the batch); the weights are those of the last good iteration. Lower the "
            "learning rate or check the data",
            level=None,
            step=step,
            sample=sample,
        )

    def _warmup(self, offset: int) -> float:
        if self.config.warmup == 0:
            return 1.0
        return min(1.0, (self.iteration + offset) / self.config.warmup)

    def _clipped_gradient(self, loss: Tensor, network: nn.Module) -> float:
        """Leaves the loss's gradient, clipped, in the parameters; returns its norm before."""
        network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), self.config.clip)
        if not bool(torch.isfinite(norm)):
            self._diverged("a gradient", step=self.model.schedule.steps)
        return float(norm)

    @torch.no_grad()
    def _average(self) -> None:
        n = self.iteration
        decay = min(self.config.ema_decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(
            list(self.ema.parameters()), list(self.model.parameters()), 1.0 - decay
        )
        for mine, theirs in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)

    def fit(
        self,
        iterations: int,
        *,
        folder: str | Path | None = None,
        progress: bool = False,
        preview: Callable[[Trainer, Path], None] | None = None,
        evaluate: Callable[[Trainer], dict[str, float]] | None = None,
    ) -> dict[str, float]:
        """Trains until ``iterations`` updates are done, those of resumed runs included.

        Ctrl-C finishes the iteration, writes a checkpoint and raises KeyboardInterrupt; a second
        one stops at once.

        Args:
            iterations: the run's total.
            folder: of the run: log, previews and checkpoints go there. None: nothing is written.
            progress: show a progress bar.
            preview: called with the trainer and a path (without suffix) every ``preview_every``.
            evaluate: returns metrics of ``trainer.ema``, every ``metrics_every``; they are logged.

        Returns:
            The last iteration's losses.
        """
        run = None if folder is None else Path(folder)
        if run is not None:
            (run / "previews").mkdir(parents=True, exist_ok=True)
            cut_log(run, self.iteration)
        log: dict[str, float] = {}
        with Interrupt() as interrupt, training_bar(progress, self.iteration, iterations) as bar:
            while self.iteration < iterations:
                start = time.perf_counter()
                log = self.step()
                self.seconds += time.perf_counter() - start
                bar(log)
                if run is not None:
                    done = interrupt.wanted or self.iteration >= iterations
                    self._write(run, log, preview, evaluate, done)
                if interrupt.wanted:
                    raise KeyboardInterrupt
        return log

    def _write(
        self,
        run: Path,
        log: dict[str, float],
        preview: Callable[[Trainer, Path], None] | None,
        evaluate: Callable[[Trainer], dict[str, float]] | None,
        done: bool,
    ) -> None:
        n, config = self.iteration, self.config

        def due(every: int) -> bool:
            return every > 0 and n % every == 0

        if due(config.log_every) or done:
            self._append(run, log)
        if preview is not None and due(config.preview_every):
            preview(self, run / "previews" / f"{n:08d}")
        if evaluate is not None and due(config.metrics_every):
            self._append(run, {"metrics": evaluate(self)})
        if due(config.checkpoint_every) or done:
            self.save(run / "checkpoints" / f"{n:08d}")
            drop_old_checkpoints(run, config.keep)

    def _append(self, run: Path, entry: dict[str, Any]) -> None:
        seconds = round(self.seconds, 3)
        append_log(run, {"iteration": self.iteration, "seconds": seconds, **entry})

    def save(self, path: str | Path) -> Path:
        """Writes a checkpoint folder, which `CDRL.from_pretrained` reads as the averaged model."""
        config = {
            **self.ema.to_config(),
            "training": {
                "config": asdict(self.config),
                "iteration": self.iteration,
                "seconds": self.seconds,
                "data": {"name": self.data.name, "size": len(self.data)},
            },
        }
        files = {
            CONFIG: checkpoint.json_to_bytes(config),
            WEIGHTS: checkpoint.tensors_to_bytes(self.ema.state_dict()),
            STATE: checkpoint.tensors_to_bytes(self._state()),
        }
        return checkpoint.write_folder(path, files)

    def _state(self) -> dict[str, Tensor]:
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for name, optimizer in self._optimizers():
            for index, slots in optimizer.state_dict()["state"].items():
                state |= {f"{name}.{index}.{slot}": value for slot, value in slots.items()}
        return state

    def _optimizers(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        yield "energy_optimizer", self.energy_optimizer
        if self.initializer_optimizer is not None:
            yield "initializer_optimizer", self.initializer_optimizer

    @classmethod
    def resume(
        cls,
        path: str | Path,
        data: Dataset,
        *,
        config: TrainConfig | None = None,
        device: torch.device | str | None = None,
    ) -> Trainer:
        """The trainer of a checkpoint, ready to go on.

        Args:
            path: a checkpoint folder, or a run's folder: then its newest checkpoint.
            data: the data set of the run; its size must be the same.
            config: replaces the stored one, but "auto" keeps the stored precision; for intervals.
            device: where to train; by default the CPU.

        Raises:
            CheckpointError: no checkpoint there, a corrupt one, or other data.
        """
        folder = newest_checkpoint(Path(path)) or Path(path)
        files = checkpoint.read_folder(folder)
        stored = checkpoint.read_json(folder, files, CONFIG)
        if "training" not in stored:
            raise CheckpointError(f"{folder}: a saved model, not a training checkpoint")
        training = stored["training"]
        if training["data"]["size"] != len(data):
            raise CheckpointError(
                f"{folder}: was trained on {training['data']['size']} samples of "
                f"{training['data']['name']!r}, got {len(data)} of {data.name!r}"
            )
        state = checkpoint.read_tensors(folder, files, STATE)
        model = CDRL.from_config(stored)
        dtype = next(v.dtype for k, v in state.items() if k.startswith("model.energy."))
        # Runs from before there was a choice were in full precision.
        full = "fp64" if dtype == torch.float64 else "fp32"
        before = TrainConfig(**{"precision": full, **training["config"]})
        config = config or before
        if config.precision == "auto":
            config = replace(config, precision=before.precision)
        trainer = cls(model.to(device, dtype), data, config)
        model.load_state_dict(_part(state, "model."))
        trainer.ema.load_state_dict(checkpoint.read_tensors(folder, files, WEIGHTS))
        for name, optimizer in trainer._optimizers():
            _load_optimizer(optimizer, _part(state, f"{name}."))
        trainer.iteration, trainer.seconds = training["iteration"], training["seconds"]
        return trainer


def _update(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, slots: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in slots.items():
        index, slot = key.split(".")
        state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _check_fit(model: CDRL, data: Dataset, config: TrainConfig) -> None:
    if data.sample_shape != model.sample_shape:
        raise ValueError(
            f"Trainer: the model's samples have shape {model.sample_shape}, those of "
            f"{data.name!r} {data.sample_shape}"
        )
    if model.num_classes and (data.labels is None or len(data.classes) > model.num_classes):
        have = "no labels" if data.labels is None else f"{len(data.classes)} classes"
        raise ValueError(
            f"Trainer: the model has {model.num_classes} classes, {data.name!r} has {have}"
        )
    if config.flip and not model.is_image:
        raise ValueError("TrainConfig: flip is for images")
