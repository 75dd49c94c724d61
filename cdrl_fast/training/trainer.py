"""`Trainer`: cooperative training of the energy and the initializer, the loop, stop and resume."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cdrl_fast._lazy import progress_bar
from cdrl_fast.data import Dataset
from cdrl_fast.engine import chain_precision
from cdrl_fast.errors import ChainDiverged, TrainingDiverged
from cdrl_fast.model.cdrl import CDRL, Networks
from cdrl_fast.ops.langevin_step import NEVER, place_of
from cdrl_fast.ops.philox import Purpose
from cdrl_fast.storage.folder import json_to_bytes, read_tensors, tensors_to_bytes, write_folder
from cdrl_fast.storage.locate import CONFIG, WEIGHTS, newest_readable
from cdrl_fast.training.batches import Batches, check_fit
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.distributed import Group, all_gather
from cdrl_fast.training.flops import sample_seconds
from cdrl_fast.training.optim import Monitor, average_, learning_rates, optimizers
from cdrl_fast.training.run_folder import Interrupt, RunFolder
from cdrl_fast.training.state import (
    checkpoint_size,
    load_model,
    load_optimizer,
    load_scaler,
    optimizer_tensors,
    part,
    scaler_tensors,
    training_config,
)
from cdrl_fast.training.step import INITIALIZER, Iteration, moved
from cdrl_fast.training.step_graph import captured

STATE = "training.safetensors"


class Trainer:
    """Trains a CDRL model cooperatively: the initializer proposes, Langevin dynamics revises, the
    energy learns from the revision and the initializer learns to propose it.

    One iteration, with t uniform per sample: f⁺ at m_t x_{t-1} from the data; y_0 from the
    initializer; K Langevin steps to y_K; then the energy's loss is the mean of w_t (f(y_K) - f⁺)
    and the initializer's the mean of ‖y_K - y_0‖². All noise, dropout and the data's order are pure
    functions of the seed and the iteration, so a resumed run is the run that was not stopped.

    Where `torch.distributed` is initialized, its processes train one model together, each on its
    part of every batch: the run is that of one process, but for roundings. The first one writes the
    run's folder, which all must see. A folder's previews and metrics are made there while the
    others wait.

    Args:
        model: trained in place, in its dtype, on its device.
        data: what to train on.
        config: see `TrainConfig`.

    Attributes:
        iteration: updates done so far.
        ema: the averaged model, for samples and metrics.
        batches: the data of each iteration.
        precision: of the chain and the losses, see `TrainConfig`.
        rollbacks: how often training went back to a checkpoint; each halves the learning rates
            and moves on in the noise stream.

    Raises:
        ValueError: data, or a precision, that does not fit the model.

    Source: Zhu, Xie, Wu, Gao, ICLR 2024, algorithm 1.

    Examples:
        >>> from cdrl_fast import CDRL, MLPEnergy, NoiseSchedule, TrainConfig, Trainer
        >>> from cdrl_fast.data import load_data
        >>> schedule = NoiseSchedule(steps=2, kappa=1e-3, step_scale="constant")
        >>> model = CDRL(MLPEnergy(width=16, multipliers=(1,)), None, schedule)
        >>> trainer = Trainer(model, load_data("checkerboard"), TrainConfig(batch_size=16))
        >>> losses = trainer.fit(2)
        >>> trainer.iteration
        2
    """

    def __init__(self, model: CDRL, data: Dataset, config: TrainConfig | None = None) -> None:
        self.model, self.data = model, data
        self.config = TrainConfig() if config is None else config
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._group = Group(self.device)
        check_fit(model, data, self.config, self._group.size)
        self.iteration = 0
        self.seconds = 0.0
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.precision = chain_precision(
            self.config.precision, model.energy, self.device, state=self.dtype
        )
        self._gradients = Iteration(model, self.config, self.precision, self._group)
        self._compute = captured(self._gradients)
        self.energy_optimizer, self.initializer_optimizer = optimizers(model)
        self._scaler = self._gradients.scaler
        self._monitor = Monitor()
        self.rollbacks = self._refused = 0
        self.batches = Batches(
            data,
            self.config,
            labelled=model.num_classes > 0,
            device=self.device,
            dtype=self.dtype,
            part=(self._group.rank, self._group.size),
        )

    def step(self) -> dict[str, float]:
        """One training iteration.

        Returns:
            "energy_loss", "energy_gap", "energy_grad_norm", and with an initializer
            "initializer_loss" and "initializer_grad_norm"; nothing where float16 overflowed, which
            halves the losses' scale and updates nothing.

        Raises:
            ChainDiverged: a chain, a loss or a gradient left the finite numbers, or a gradient is a
                thousand times the usual one; the weights are as before.
        """
        x0, label = self.batches.at(self.iteration)
        found = self._compute(x0, label, self._first_sample + self.batches.start)
        first_bad = found.pop("first_bad")
        for name, network, optimizer in self._networks():
            self._scaler.unscale_(optimizer)
            found[f"{name}_grad_norm"] = all_gather(
                nn.utils.clip_grad_norm_(network.parameters(), self.config.clip)
            )
        # One wait for the device; nothing is updated before every gradient is known to be good.
        figures = torch.stack([first_bad != NEVER, *found.values()])
        bad, *values = self._group.mean(figures).tolist()
        log = dict(zip(found, values, strict=True))
        overflown = self._scaler.is_enabled() and self._scaler.get_scale() > 1.0
        self._scaler.update()
        if bad:
            self._raise_chain(int(self._group.all_reduce_min(moved(first_bad, self.batches.start))))
        complaint = self._monitor.complaint(log)
        norms = {k: v for k, v in log.items() if k.endswith("grad_norm")}
        if overflown and complaint is not None and not all(map(math.isfinite, norms.values())):
            self.iteration += 1
            return {}
        if complaint is not None:
            raise self._diverged(complaint)
        self._monitor.note(log)
        self._update()
        self.iteration += 1
        average_(self.ema, self.model, self.iteration, self.config.ema_decay)
        return log

    @property
    def _first_sample(self) -> int:
        """Of the iteration in the noise stream; after a roll-back elsewhere than before it."""
        return self.iteration * self.config.batch_size + (self.rollbacks << 48)

    def _raise_chain(self, code: int) -> None:
        draw, sample = place_of(code)
        step = draw - Purpose.TRAINING.draw(INITIALIZER)
        what = (
            f"step {step}: a training chain left the finite numbers (sample {sample} of the batch)"
        )
        raise self._diverged(what, step, sample)

    def _diverged(self, what: str, step: int = 0, sample: int = 0) -> ChainDiverged:
        return ChainDiverged(
            f"iteration {self.iteration}, {what}; the weights are those of the last good "
            "iteration. Lower the learning rate or check the data",
            level=None,
            step=step,
            sample=sample,
        )

    def _networks(self) -> Iterator[tuple[str, nn.Module, torch.optim.Optimizer]]:
        yield "energy", self.model.energy, self.energy_optimizer
        if self.model.initializer is not None and self.initializer_optimizer is not None:
            yield "initializer", self.model.initializer, self.initializer_optimizer

    def _update(self) -> None:
        rates = learning_rates(self.config, self.iteration, self.rollbacks)
        for name, _, optimizer in self._networks():
            for group in optimizer.param_groups:
                group["lr"] = rates[name]
            optimizer.step()

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

        Ctrl-C or SIGTERM finishes the iteration, writes a checkpoint and raises KeyboardInterrupt
        (SystemExit); a second one stops at once. An iteration that leaves the finite numbers, or
        whose gradient explodes, is skipped and logged; after ``config.patience`` of them in a row
        training goes back to the last good checkpoint. A checkpoint or a line of the log that
        cannot be written is tried again later; only in the end is that an error.

        Args:
            iterations: the run's total, skipped ones included.
            folder: of the run: log, previews and checkpoints go there. None: nothing is written.
            progress: show a progress bar.
            preview: called with the trainer and a path (without suffix) every ``preview_every``.
            evaluate: returns metrics of ``trainer.ema``, every ``metrics_every``; they are logged.

        Returns:
            The last good iteration's losses.

        Raises:
            TrainingDiverged: bad iterations that going back does not cure.
            CheckpointError: a folder that cannot be written to, or has no room for a checkpoint.
        """
        run, first = None, self._group.rank == 0
        if folder is not None and first:
            floor = sample_seconds(self.ema, self.precision) / self._group.size
            run = RunFolder(Path(folder), self.config, self.iteration, floor)
            run.check_free_space(checkpoint_size(self.ema))
        log: dict[str, float] = {}
        good = log
        options = {"total": iterations, "initial": self.iteration, "unit": "it"}
        shown = progress_bar(progress and first, desc="training", **options)
        closed = nullcontext() if run is None else closing(run)
        with closed, Interrupt() as interrupt, shown as bar:
            while self.iteration < iterations:
                start = time.perf_counter()
                try:
                    log, self._refused = self.step(), 0
                    good = log or good
                except ChainDiverged as error:
                    log = {}
                    self._refuse(error, run)
                self.seconds += time.perf_counter() - start
                if "energy_gap" in log:
                    bar.set_postfix_str(f"gap={log['energy_gap']:.2e}", refresh=False)
                bar.update(self.iteration - bar.n)
                wanted, due = self._group.any(
                    interrupt.wanted, run is not None and self._checkpoint_due(run)
                )
                done = wanted or self.iteration >= iterations
                if run is not None:
                    self._write(run, log, preview, evaluate, done)
                if folder is not None and (done or due):
                    self._checkpoint(run, last=done)
                if wanted:
                    interrupt.raise_anyway()
        return good

    def _refuse(self, error: ChainDiverged, run: RunFolder | None) -> None:
        """After a bad iteration: on to the next one, or back to the last good checkpoint."""
        self._refused += 1
        if run is not None:
            run.log(self.iteration, self.seconds, {"skipped": str(error)})
        if self._refused <= self.config.patience:
            self.iteration += 1
            return
        back = self._group.broadcast(None if run is None else run.newest())
        if back is None or self.rollbacks >= self.config.rollbacks:
            often = f"went back {self.rollbacks} times before"
            why = "there is no checkpoint to go back to" if back is None else often
            raise TrainingDiverged(
                f"{self._refused} iterations in a row were not to be trusted, and {why}; the last: "
                f"{error}"
            ) from error
        rollbacks = self.rollbacks + 1
        self._restore(*back)
        self.rollbacks, self._refused = rollbacks, 0
        if run is not None:
            told = {"rolled_back": rollbacks, "learning_rates": 0.5**rollbacks}
            run.log(self.iteration, self.seconds, told)

    def _write(
        self,
        run: RunFolder,
        log: dict[str, float],
        preview: Callable[[Trainer, Path], None] | None,
        evaluate: Callable[[Trainer], dict[str, float]] | None,
        done: bool,
    ) -> None:
        n, config = self.iteration, self.config
        if (self._due(config.log_every) or done) and log:
            run.losses(n, self.seconds, log)
        if preview is not None and self._due(config.preview_every):
            run.preview(n, lambda path: preview(self, path))
        if evaluate is not None and self._due(config.metrics_every):
            run.attempt(lambda: run.log(n, self.seconds, {"metrics": evaluate(self)}))

    def _due(self, every: int) -> bool:
        return every > 0 and self.iteration % every == 0

    def _checkpoint_due(self, run: RunFolder) -> bool:
        retry = self._due(self.config.log_every)
        return self._due(self.config.checkpoint_every) or run.checkpoint_due(retry=retry)

    def _checkpoint(self, run: RunFolder | None, *, last: bool) -> None:
        if run is None or run.has(self.iteration):
            self._state()  # the parts of a sharded run come from all processes
        else:
            run.checkpoint(self.iteration, self.save, last=last)

    def save(self, path: str | Path) -> Path:
        """Writes a checkpoint folder, which `CDRL.from_pretrained` reads as the averaged model.

        With ``shard`` all processes call it, each with a path of its own.

        Raises:
            CheckpointError: a file in its place. OSError: no room, or a folder that is read-only.
        """
        config = {
            **self.ema.to_config(),
            "training": {
                "config": asdict(self.config),
                "iteration": self.iteration,
                "seconds": self.seconds,
                "rollbacks": self.rollbacks,
                "refused": self._refused,
                "usual": self._monitor.state,
                "data": {"name": self.data.name, "size": len(self.data)},
            },
        }
        files = {
            CONFIG: json_to_bytes(config),
            WEIGHTS: tensors_to_bytes(self.ema.state_dict()),
            STATE: tensors_to_bytes(self._state()),
        }
        return write_folder(path, files)

    def _state(self) -> dict[str, Tensor]:
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for name, _, optimizer in self._networks():
            state |= optimizer_tensors(f"{name}_optimizer", optimizer)
        state |= scaler_tensors(self._scaler)
        # In one order in all processes, which a file's tensors do not have.
        return {k: all_gather(state[k]) for k in sorted(state)}

    @classmethod
    def resume(
        cls,
        path: str | Path,
        data: Dataset,
        *,
        config: TrainConfig | None = None,
        device: torch.device | str | None = None,
        networks: Networks | None = None,
    ) -> Trainer:
        """The trainer of a checkpoint, ready to go on.

        Args:
            path: a checkpoint folder, or a run's folder: then its newest checkpoint that is whole;
                a warning names those that are not.
            data: the data set of the run; its size must be the same.
            config: replaces the stored one, but "auto" keeps the stored precision; for intervals.
            device: where to train; by default the CPU.
            networks: as in `CDRL.from_pretrained`.

        Raises:
            CheckpointError: no whole checkpoint there, or other data.
        """
        folder, files = newest_readable(Path(path))
        stored = training_config(folder, files, data)
        training = stored["training"]
        state = read_tensors(folder, files, STATE)
        model = CDRL.from_config(stored, networks)
        dtype = next(v.dtype for k, v in state.items() if k.startswith("model.energy."))
        # Runs from before there was a choice were in full precision.
        full = "fp64" if dtype == torch.float64 else "fp32"
        before = TrainConfig(**{"precision": full, **training["config"]})
        config = config or before
        if config.precision == "auto":
            config = replace(config, precision=before.precision)
        trainer = cls(model.to(device, dtype), data, config)
        trainer._restore(folder, files)
        trainer.seconds = training["seconds"]
        return trainer

    def _restore(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """Everything as the checkpoint has it, but for the seconds; ``files`` are verified."""
        training = training_config(folder, files, self.data)["training"]
        state = read_tensors(folder, files, STATE)
        load_model(self.model, part(state, "model"))
        self.ema.load_state_dict(read_tensors(folder, files, WEIGHTS))
        for name, _, optimizer in self._networks():
            load_optimizer(optimizer, part(state, f"{name}_optimizer"))
        load_scaler(self._scaler, part(state, "scaler"))
        self.iteration = training["iteration"]
        self.rollbacks = training.get("rollbacks", 0)
        self._refused = training.get("refused", 0)
        self._monitor = Monitor(training.get("usual"))
