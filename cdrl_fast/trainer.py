"""`Trainer`: cooperative training of the energy and the initializer, the loop, stop and resume."""

from __future__ import annotations

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdrl_fast import checkpoint
from cdrl_fast.data import Dataset
from cdrl_fast.errors import ChainDiverged, CheckpointError
from cdrl_fast.model import CDRL, CONFIG, WEIGHTS, newest_checkpoint
from cdrl_fast.networks.layers import StreamDropout, static_weights
from cdrl_fast.ops import langevin_step, normal, philox
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.philox import Purpose

STATE = "training.safetensors"
LOG = "log.jsonl"

# Indices of the training draws; the Langevin step k adds k to the initializer's.
NOISE, POSTERIOR, LEVEL, LABEL_DROP, FLIP, DROPOUT, INITIALIZER = 0, 1, 2, 3, 4, 16, 2**16


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the defaults are the paper's CIFAR-10 run.

    Attributes:
        batch_size: samples an iteration.
        energy_lr, initializer_lr: learning rates of Adam (energy) and AdamW without decay.
        warmup: iterations of linear warm-up; 0 for none.
        initializer_warmup_offset: how far ahead the initializer's warm-up is.
        clip: gradient norm to which each network's gradient is clipped.
        ema_decay: decay of the averaged weights, ramped as (1 + n)/(10 + n).
        variance_reduction: draw x_{t-1} with the noise of x_t; otherwise from the posterior.
        label_drop: probability that a label is replaced by "no label".
        flip: mirror images at random.
        seed: of all noise and of the data's order.
        log_every: iterations between lines of the log.
        preview_every, metrics_every, checkpoint_every: iterations between previews, metrics and
            checkpoints; 0 for none.
        keep: checkpoints kept, the newest ones.
    """

    batch_size: int = 256
    energy_lr: float = 1e-4
    initializer_lr: float = 1e-5
    warmup: int = 10_000
    initializer_warmup_offset: int = 500
    clip: float = 1.0
    ema_decay: float = 0.9999
    variance_reduction: bool = True
    label_drop: float = 0.1
    flip: bool = False
    seed: int = 0
    log_every: int = 10
    preview_every: int = 0
    metrics_every: int = 0
    checkpoint_every: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig: expected {name} >= 1, got {getattr(self, name)}")
        for name in ("warmup", "preview_every", "metrics_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"TrainConfig: expected {name} >= 0, got {getattr(self, name)}")
        for name in ("energy_lr", "initializer_lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"TrainConfig: expected {name} > 0, got {getattr(self, name)}")
        for name in ("label_drop", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"TrainConfig: expected 0 <= {name} < 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class LevelTable:
    """The schedule's constants as tensors indexed by t - 1, for batches of mixed levels."""

    scale: Tensor
    logsnr: Tensor
    logsnr_noisy: Tensor
    init_std: Tensor
    pull: Tensor
    noise_std: Tensor
    loss_weight: Tensor

    @classmethod
    def of(cls, model: CDRL, device: torch.device, dtype: torch.dtype) -> LevelTable:
        levels = [model.schedule.level(t) for t in range(1, model.schedule.levels + 1)]
        return cls(
            **{
                name: torch.tensor([getattr(x, name) for x in levels], device=device, dtype=dtype)
                for name in cls.__dataclass_fields__
            }
        )

    def at(self, t: Tensor) -> LevelTable:
        """One entry a sample; t int64 (batch,)."""
        return LevelTable(**{k: getattr(self, k)[t - 1] for k in self.__dataclass_fields__})


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

    Raises:
        ValueError: data whose shape or classes do not fit the model.

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
        self._order: tuple[int, np.ndarray[Any, Any]] | None = None
        _connect_dropout(model.initializer, self)

    # -- one iteration ---------------------------------------------------------------------------

    def step(self) -> dict[str, float]:
        """One training iteration; returns losses, energy gap and gradient norms.

        Raises:
            ChainDiverged: a chain or a loss left the finite numbers; the weights are as before.
        """
        x0, label = self._batch()
        level, x_noisy, x_clean = self._noised(x0)
        energy, config = self.model.energy, self.config
        energy.train()
        positive = energy(_per_sample(level.scale, x_clean) * x_clean, level.logsnr, label)
        proposal = self._propose(x_noisy, level, label)
        energy.eval()
        with static_weights(energy):
            revised = self._revise(proposal.detach(), x_noisy, level, label)
        negative = energy(revised, level.logsnr, label)
        energy_loss = (level.loss_weight * (negative - positive)).mean()
        log = {
            "energy_loss": float(energy_loss.detach()),
            "energy_gap": float((positive - negative).detach().mean()),
        }
        if not math.isfinite(log["energy_loss"]):
            self._diverged("the energy's loss", step=self.model.schedule.steps)
        log["energy_grad_norm"] = self._update(
            self.energy_optimizer, energy_loss, energy, config.energy_lr * self._warmup(0)
        )
        if self.initializer_optimizer is not None and self.model.initializer is not None:
            loss = (revised - proposal).square().flatten(1).sum(dim=1).mean()
            lr = config.initializer_lr * self._warmup(config.initializer_warmup_offset)
            norm = self._update(self.initializer_optimizer, loss, self.model.initializer, lr)
            log |= {"initializer_loss": float(loss.detach()), "initializer_grad_norm": norm}
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

    def _batch(self) -> tuple[Tensor, Tensor | None]:
        """The iteration's images and labels, flipped and with labels dropped."""
        config, n = self.config, self.config.batch_size
        x0, label = self.data.batch(self._indices())
        x0 = x0.to(self.device, self.dtype)
        if config.flip:
            mirrored = philox.randint(n, 2, **self._rng(FLIP)).bool()
            x0 = torch.where(_per_sample(mirrored, x0), x0.flip(-1), x0)
        if label is None or self.model.num_classes == 0:
            return x0, None
        label = label.to(self.device)
        dropped = philox.uniform((n, 1), **self._rng(LABEL_DROP))[:, 0] < config.label_drop
        return x0, label.masked_fill(dropped, 0)

    def _indices(self) -> np.ndarray[Any, Any]:
        """Rows of the data for this iteration: epoch after epoch, each in an order of its own."""
        size, n = len(self.data), self.config.batch_size
        positions = np.arange(self.iteration * n, (self.iteration + 1) * n)
        epochs, rows = positions // size, positions % size
        return np.concatenate([self._epoch(e)[rows[epochs == e]] for e in np.unique(epochs)])

    def _epoch(self, epoch: int) -> np.ndarray[Any, Any]:
        if self._order is None or self._order[0] != epoch:
            key = np.array([self.config.seed % 2**64, epoch], dtype=np.uint64)
            generator = np.random.Generator(np.random.Philox(key=key))
            self._order = (int(epoch), generator.permutation(len(self.data)))
        return self._order[1]

    def _noised(self, x0: Tensor) -> tuple[LevelTable, Tensor, Tensor]:
        """The samples' levels, x_t and x_{t-1}."""
        schedule = self.model.schedule
        t = philox.randint(len(x0), schedule.levels, **self._rng(LEVEL)) + 1

        def at(values: Any, index: Tensor) -> Tensor:
            table = torch.as_tensor(np.array(values), device=self.device, dtype=self.dtype)
            return _per_sample(table[index], x0)

        noise = self._noise(x0, NOISE)
        signal, variance = np.sqrt(schedule.alpha_bar), np.sqrt(schedule.noise_variance)
        x_noisy = at(signal, t) * x0 + at(variance, t) * noise
        if self.config.variance_reduction:
            x_clean = at(signal, t - 1) * x0 + at(variance, t - 1) * noise
        else:
            # Posterior q(x_{t-1} | x_t, x_0), with r = exp(λ_t - λ_{t-1}).
            r = np.exp(np.diff(schedule.logsnr))
            ratio = schedule.alpha_bar[:-1] / schedule.alpha_bar[1:]
            spread = schedule.noise_variance[:-1] / schedule.noise_variance[1:] * (1 - 1 / ratio)
            x_clean = (
                at(r * np.sqrt(ratio), t - 1) * x_noisy
                + at((1 - r) * signal[:-1], t - 1) * x0
                + at(np.sqrt(spread), t - 1) * self._noise(x0, POSTERIOR)
            )
        return self._levels.at(t), x_noisy, x_clean

    def _propose(self, x_noisy: Tensor, level: LevelTable, label: Tensor | None) -> Tensor:
        """y_0: the initializer's mean with its noise; x_t itself without an initializer."""
        if self.model.initializer is None:
            return x_noisy
        self.model.initializer.train()
        mean: Tensor = self.model.initializer(x_noisy, level.logsnr_noisy, label)
        return mean + _per_sample(level.init_std, mean) * self._noise(mean, INITIALIZER)

    def _revise(
        self, y: Tensor, anchor: Tensor, level: LevelTable, label: Tensor | None
    ) -> Tensor:
        """y_K: K Langevin steps from y_0, without gradients to parameters."""
        first_bad = torch.full((), NEVER, dtype=torch.int64, device=self.device)
        for k in range(1, self.model.schedule.steps + 1):
            y.requires_grad_(True)
            energy = self.model.energy(y, level.logsnr, label)
            (gradient,) = torch.autograd.grad(energy.sum(), y)
            rng = self._rng(INITIALIZER + k)
            y = langevin_step(
                y.detach(),
                gradient,
                anchor,
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

    def _update(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module, lr: float
    ) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), self.config.clip)
        if not bool(torch.isfinite(norm)):
            self._diverged("a gradient", step=self.model.schedule.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
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

    # -- the loop --------------------------------------------------------------------------------

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
            _cut_log(run / LOG, self.iteration)
        log: dict[str, float] = {}
        with _Interrupt() as interrupt, _bar(progress, self.iteration, iterations) as bar:
            while self.iteration < iterations:
                start = time.perf_counter()
                log = self.step()
                self.seconds += time.perf_counter() - start
                bar(log)
                done = interrupt.wanted or self.iteration >= iterations
                self._write(run, log, preview, evaluate, done)
                if interrupt.wanted:
                    raise KeyboardInterrupt
        return log

    def _write(
        self,
        run: Path | None,
        log: dict[str, float],
        preview: Callable[[Trainer, Path], None] | None,
        evaluate: Callable[[Trainer], dict[str, float]] | None,
        done: bool,
    ) -> None:
        n, config = self.iteration, self.config

        def due(every: int) -> bool:
            return every > 0 and n % every == 0

        if run is None:
            return
        if n % config.log_every == 0 or done:
            self._append(run, log)
        if preview is not None and due(config.preview_every):
            preview(self, run / "previews" / f"{n:08d}")
        if evaluate is not None and due(config.metrics_every):
            self._append(run, {"metrics": evaluate(self)})
        if due(config.checkpoint_every) or done:
            self.save(run / "checkpoints" / f"{n:08d}")
            _drop_old(run, config.keep)

    def _append(self, run: Path, entry: dict[str, Any]) -> None:
        line = {"iteration": self.iteration, "seconds": round(self.seconds, 3), **entry}
        with (run / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")

    # -- checkpoints -----------------------------------------------------------------------------

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
        cls, path: str | Path, data: Dataset, *, config: TrainConfig | None = None
    ) -> Trainer:
        """The trainer of a checkpoint, ready to go on.

        Args:
            path: a checkpoint folder, or a run's folder: then its newest checkpoint.
            data: the data set of the run; its size must be the same.
            config: replaces the stored one; for intervals of logs and checkpoints, say.

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
        trainer = cls(model.to(dtype), data, config or TrainConfig(**training["config"]))
        model.load_state_dict(_part(state, "model."))
        trainer.ema.load_state_dict(checkpoint.read_tensors(folder, files, WEIGHTS))
        for name, optimizer in trainer._optimizers():
            _load_optimizer(optimizer, _part(state, f"{name}."))
        trainer.iteration, trainer.seconds = training["iteration"], training["seconds"]
        return trainer


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, slots: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in slots.items():
        index, slot = key.split(".")
        state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _connect_dropout(initializer: nn.Module | None, trainer: Trainer) -> None:
    """Lets the dropout layers draw their masks from the noise stream."""
    if initializer is None:
        return
    layers = [m for m in initializer.modules() if isinstance(m, StreamDropout)]
    for index, layer in enumerate(layers):

        def uniform(shape: torch.Size, index: int = index) -> Tensor:
            return philox.uniform(shape, **trainer._rng(DROPOUT + index))

        layer.uniform = uniform


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


def _drop_old(run: Path, keep: int) -> None:
    folders = sorted((run / "checkpoints").glob("[0-9]*"), key=lambda f: int(f.name))
    for folder in folders[:-keep]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _cut_log(path: Path, iteration: int) -> None:
    """Drops what a stopped run logged after the checkpoint that is being resumed."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry.get("iteration", 0) <= iteration:
            kept.append(line + "\n")
    checkpoint.write_atomic(path, "".join(kept).encode())


class _Interrupt:
    """Turns the first Ctrl-C into a wish; the second raises as usual."""

    def __init__(self) -> None:
        self.wanted = False
        self._previous: Any = None

    def _note(self, number: int, frame: Any) -> None:
        self.wanted = True
        signal.signal(signal.SIGINT, self._previous)

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


@contextmanager
def _bar(show: bool, done: int, total: int) -> Iterator[Callable[[dict[str, float]], None]]:
    if not show:
        yield lambda log: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=done, desc="training", unit="it") as bar:

        def advance(log: dict[str, float]) -> None:
            bar.set_postfix(gap=f"{log['energy_gap']:.2e}", refresh=False)
            bar.update()

        yield advance
