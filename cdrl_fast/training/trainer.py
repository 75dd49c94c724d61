"""`Trainer`: cooperative training of the energy and the initializer; checkpoints and resuming."""

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
from cdrl_fast.ops.keys import TrainingKeys
from cdrl_fast.ops.langevin_step import NEVER, decode_first_bad
from cdrl_fast.storage.folder import json_to_bytes, read_tensors, tensors_to_bytes, write_folder
from cdrl_fast.storage.locate import CONFIG, WEIGHTS, newest_readable
from cdrl_fast.training.batches import Batches, check_compatible
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.distributed import Group, all_gather
from cdrl_fast.training.flops import roofline_seconds
from cdrl_fast.training.optim import Monitor, learning_rates, optimizers, update_ema
from cdrl_fast.training.run_folder import Interrupt, RunFolder
from cdrl_fast.training.state import (
    checkpoint_size,
    load_model,
    load_optimizer,
    load_scaler,
    optimizer_tensors,
    read_config,
    scaler_tensors,
    subtree,
)
from cdrl_fast.training.step import Iteration, shift_first_bad
from cdrl_fast.training.step_graph import capture_if_possible

STATE = "training.safetensors"


class Trainer:
    """Cooperative training of a CDRL model.

    The initializer proposes samples, Langevin dynamics revises them; the energy learns from the
    revised samples, and the initializer learns to propose them.

    One iteration, with t uniform per sample: f⁺ at m_t x_{t-1} from the data; y_0 from the
    initializer; K Langevin steps to y_K. The energy's loss is the mean of w_t (f(y_K) - f⁺), the
    initializer's the mean of ‖y_K - y_0‖². All noise, dropout masks and the order of the data are
    pure functions of the seed and the iteration, so a resumed run equals an uninterrupted one.

    Where `torch.distributed` is initialized, its processes train one model together, each on its
    part of every batch; up to rounding, the run equals that of one process. The first process
    writes the run's folder, which all processes must see. Previews and metrics of a run with a
    folder are computed by the first process while the others wait.

    Args:
        model: trained in place, in its dtype, on its device.
        data: training data.
        config: settings; None for the defaults, see `TrainConfig`.

    Attributes:
        iteration: updates done so far, skipped iterations included.
        seconds: training time so far.
        ema: the averaged model, for samples and metrics.
        batches: the data of each iteration.
        precision: precision of the chain and the losses, see `TrainConfig`.
        rollbacks: how often training went back to a checkpoint. Each time halves the learning rates
            and moves on to new noise.

    Raises:
        ValueError: data or a precision that does not fit the model.

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
        check_compatible(model, data, self.config, self._group.size)
        self.iteration = 0
        self.seconds = 0.0
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.precision = chain_precision(
            self.config.precision, model.energy, self.device, state=self.dtype
        )
        self._gradients = Iteration(model, self.config, self.precision, self._group)
        self._compute = capture_if_possible(self._gradients)
        self.energy_optimizer, self.initializer_optimizer = optimizers(model)
        self._scaler = self._gradients.scaler
        self._monitor = Monitor()
        self.rollbacks = self._skipped = 0
        self.batches = Batches(
            data,
            self.config,
            labelled=model.num_classes > 0,
            device=self.device,
            dtype=self.dtype,
            part=(self._group.rank, self._group.size),
        )

    def step(self) -> dict[str, float]:
        """Run one training iteration.

        Returns:
            "energy_loss", "energy_gap" (the mean of f⁺ - f⁻) and "energy_grad_norm", and with an
            initializer "initializer_loss" and "initializer_grad_norm". An empty dict if float16
            gradients overflowed: then nothing is updated, and the losses' scale is halved.

        Raises:
            ChainDiverged: a chain, a loss or a gradient became non-finite (NaN or Inf), or a
                gradient norm is a thousand times the usual one. The weights are unchanged.
        """
        x0, label = self.batches.at(self.iteration)
        values = self._compute(x0, label, self._first_sample + self.batches.start)
        first_bad = values.pop("first_bad")
        for name, network, optimizer in self._networks():
            self._scaler.unscale_(optimizer)
            values[f"{name}_grad_norm"] = all_gather(
                nn.utils.clip_grad_norm_(network.parameters(), self.config.clip)
            )
        # One wait for the device; nothing is updated before every gradient has been checked.
        stacked = torch.stack([first_bad != NEVER, *values.values()])
        bad, *means = self._group.mean(stacked).tolist()
        log = dict(zip(values, means, strict=True))
        scaled = self._scaler.is_enabled() and self._scaler.get_scale() > 1.0
        self._scaler.update()
        if bad:
            first_bad = shift_first_bad(first_bad, self.batches.start)
            self._raise_chain_diverged(int(self._group.all_reduce_min(first_bad)))
        anomaly = self._monitor.anomaly(log)
        norms = {k: v for k, v in log.items() if k.endswith("grad_norm")}
        if scaled and anomaly is not None and not all(map(math.isfinite, norms.values())):
            self.iteration += 1
            return {}
        if anomaly is not None:
            raise self._diverged(anomaly)
        self._monitor.update(log)
        self._update()
        self.iteration += 1
        update_ema(self.ema, self.model, self.iteration, self.config.ema_decay)
        return log

    @property
    def _first_sample(self) -> int:
        """Index in the noise stream of the batch's first sample; roll-backs move it far ahead."""
        return self.iteration * self.config.batch_size + (self.rollbacks << 48)

    def _raise_chain_diverged(self, first_bad: int) -> None:
        draw, sample = decode_first_bad(first_bad)
        step = TrainingKeys(self.config.seed, self._first_sample).step_at(draw)
        event = (
            f"step {step}: the training chain became non-finite (NaN or Inf) at sample {sample} of "
            "the batch"
        )
        raise self._diverged(event, step, sample)

    def _diverged(self, event: str, step: int = 0, sample: int = 0) -> ChainDiverged:
        return ChainDiverged(
            f"iteration {self.iteration}, {event}; the weights are those of the last good "
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
        """Train until ``iterations`` updates are done, including those before a resume.

        Ctrl-C or SIGTERM finishes the iteration, writes a checkpoint and raises KeyboardInterrupt
        or SystemExit; a second signal stops at once. An iteration in which a value becomes
        non-finite (NaN or Inf) or a gradient explodes is skipped and logged; if more than
        ``config.patience`` in a row are bad, training goes back to the last good checkpoint. A
        checkpoint that cannot be written is retried; only the last one raises. Other writes that
        fail are logged as warnings.

        Args:
            iterations: total of the run, skipped iterations included.
            folder: the run's folder, for its log, previews and checkpoints; None writes nothing.
            progress: whether to show a progress bar.
            preview: called every ``config.preview_every`` iterations with the trainer and a path
                without suffix.
            evaluate: called every ``config.metrics_every`` iterations with the trainer; the metrics
                that it returns, of ``trainer.ema``, are logged.

        Returns:
            The last good iteration's losses and norms, see `step`.

        Raises:
            TrainingDiverged: bad iterations that going back to a checkpoint does not cure.
            CheckpointError: a folder that cannot be written to or has another run, or not enough
                free space for a checkpoint.
        """
        run, first = None, self._group.rank == 0
        if folder is not None and first:
            roofline = roofline_seconds(self.ema, self.precision) / self._group.size
            run = RunFolder(Path(folder), self.config, self.iteration, roofline)
            run.check_free_space(checkpoint_size(self.ema))
        log: dict[str, float] = {}
        last_good = log
        options = {"total": iterations, "initial": self.iteration, "unit": "it"}
        bar_context = progress_bar(progress and first, desc="training", **options)
        run_context = nullcontext() if run is None else closing(run)
        with run_context, Interrupt() as interrupt, bar_context as bar:
            while self.iteration < iterations:
                start = time.perf_counter()
                try:
                    log, self._skipped = self.step(), 0
                    last_good = log or last_good
                except ChainDiverged as error:
                    log = {}
                    self._skip_or_roll_back(error, run)
                self.seconds += time.perf_counter() - start
                if "energy_gap" in log:
                    bar.set_postfix_str(f"gap={log['energy_gap']:.2e}", refresh=False)
                bar.update(self.iteration - bar.n)
                stop, due = self._group.any(
                    interrupt.requested, run is not None and self._checkpoint_due(run)
                )
                done = stop or self.iteration >= iterations
                if run is not None:
                    self._write(run, log, preview, evaluate, done)
                if folder is not None and (done or due):
                    self._checkpoint(run, last=done)
                if stop:
                    interrupt.reraise()
        return last_good

    def _skip_or_roll_back(self, error: ChainDiverged, run: RunFolder | None) -> None:
        """Skip a bad iteration, or go back to the last good checkpoint."""
        self._skipped += 1
        if run is not None:
            run.log(self.iteration, self.seconds, {"skipped": str(error)})
        if self._skipped <= self.config.patience:
            self.iteration += 1
            return
        checkpoint = self._group.broadcast(None if run is None else run.newest_checkpoint())
        if checkpoint is None or self.rollbacks >= self.config.rollbacks:
            reason = "there is no checkpoint to go back to"
            if checkpoint is not None:
                reason = f"training went back to a checkpoint {self.rollbacks} times before"
            raise TrainingDiverged(
                f"{self._skipped} iterations in a row were bad, and {reason}; the last: {error}"
            ) from error
        rollbacks = self.rollbacks + 1
        self._restore(*checkpoint)
        self.rollbacks, self._skipped = rollbacks, 0
        if run is not None:
            entry = {"rolled_back": rollbacks, "learning_rates": 0.5**rollbacks}
            run.log(self.iteration, self.seconds, entry)

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
            run.log_losses(n, self.seconds, log)
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
        if run is None or run.has_checkpoint(self.iteration):
            self._state()  # gathers sharded tensors, in which all processes must take part
        else:
            run.checkpoint(self.iteration, self.save, last=last)

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint folder, which `CDRL.from_pretrained` reads as the averaged model.

        With ``shard``, all processes must call it, each with its own path.

        Args:
            path: the folder; files in it that have the same names are replaced.

        Returns:
            The folder.

        Raises:
            CheckpointError: ``path`` is a file. OSError: the disk is full or the folder read-only.
        """
        config = {
            **self.ema.to_config(),
            "training": {
                "config": asdict(self.config),
                "iteration": self.iteration,
                "seconds": self.seconds,
                "rollbacks": self.rollbacks,
                "refused": self._skipped,
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
        # Sorted, so that all processes gather the tensors in the same order.
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
        """Return a trainer that continues from a checkpoint.

        Args:
            path: a checkpoint folder, or a run's folder, of which the newest complete checkpoint is
                taken; a warning names newer ones that are corrupt.
            data: the data set of the run; its size must be the same.
            config: replaces the stored configuration, for example to change intervals; precision
                "auto" keeps the stored one. None keeps all.
            device: device to train on; None for the CPU.
            networks: as in `CDRL.from_pretrained`.

        Returns:
            The trainer, in the state of the checkpoint.

        Raises:
            CheckpointError: no complete checkpoint there, or a data set of another size.
        """
        folder, files = newest_readable(Path(path))
        stored = read_config(folder, files, data)
        training = stored["training"]
        state = read_tensors(folder, files, STATE)
        model = CDRL.from_config(stored, networks)
        dtype = next(v.dtype for k, v in state.items() if k.startswith("model.energy."))
        # The first runs have no "precision"; they were trained in full precision.
        full = "fp64" if dtype == torch.float64 else "fp32"
        stored_config = TrainConfig(**{"precision": full, **training["config"]})
        config = config or stored_config
        if config.precision == "auto":
            config = replace(config, precision=stored_config.precision)
        trainer = cls(model.to(device, dtype), data, config)
        trainer._restore(folder, files)
        trainer.seconds = training["seconds"]
        return trainer

    def _restore(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """Load the state of a checkpoint, except ``seconds``; ``files`` are verified."""
        training = read_config(folder, files, self.data)["training"]
        state = read_tensors(folder, files, STATE)
        load_model(self.model, subtree(state, "model"))
        self.ema.load_state_dict(read_tensors(folder, files, WEIGHTS))
        for name, _, optimizer in self._networks():
            load_optimizer(optimizer, subtree(state, f"{name}_optimizer"))
        load_scaler(self._scaler, subtree(state, "scaler"))
        self.iteration = training["iteration"]
        self.rollbacks = training.get("rollbacks", 0)
        self._skipped = training.get("refused", 0)
        self._monitor = Monitor(training.get("usual"))
