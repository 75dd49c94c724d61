"""`CDRL`, the model: an energy network, its initializer and the noise schedule."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdrl_fast._lazy import optional_module
from cdrl_fast.errors import CheckpointError
from cdrl_fast.model.schedule import NoiseSchedule, StepPlan, Steps
from cdrl_fast.model.slots import DrawComponents, Slot
from cdrl_fast.networks import MLPEnergy, MLPInitializer, ResNetEnergy, UNetInitializer
from cdrl_fast.storage.card import ModelCard
from cdrl_fast.storage.folder import (
    json_to_bytes,
    read_json,
    read_tensors,
    tensors_to_bytes,
    write_atomic,
    write_folder,
)
from cdrl_fast.storage.locate import CONFIG, WEIGHTS, checkpoints_of, find_saved, newest_readable

Networks = tuple[nn.Module, nn.Module | None]
Label = int | str | Sequence[int] | Sequence[str] | Tensor | None

NETWORKS: dict[str, type[nn.Module]] = {
    network.__name__: network
    for network in (ResNetEnergy, UNetInitializer, MLPEnergy, MLPInitializer)
}


class CDRL(nn.Module):
    """A cooperative diffusion recovery likelihood model.

    At level t the log-density of x_{t-1} is f(m_t x_{t-1}, λ_{t-1}) / s_t² up to a constant, with f
    the energy network; the Langevin chain of a level starts from the initializer's proposal.

    Args:
        energy: module with ``forward(y, logsnr, label) -> (batch,)``.
        initializer: module with ``forward(x, logsnr, label)`` that returns a tensor of x's shape.
            None: a level starts from x_t itself, which is DRL, the predecessor of CDRL.
        schedule: the noise schedule.
        sample_shape: shape of one sample, (C, H, W) or (dim,). None: taken from the configuration
            of the networks, which fails for a ResNetEnergy without an initializer.

    Attributes:
        step_plan: the step plan that ``steps="tuned"`` selects, or None. It is saved with the
            model; `tune_steps` computes one.
        classes: number of classes, or their names in order; 0 for an unconditional model.

    Raises:
        ValueError: the networks have different classes, or ``sample_shape`` is None and neither
            network knows it.

    Source: Zhu, Xie, Wu, Gao, ICLR 2024; without an initializer Gao et al., ICLR 2021.

    Examples:
        >>> from cdrl_fast import CDRL, NoiseSchedule, ResNetEnergy, UNetInitializer
        >>> energy = ResNetEnergy(image_channels=1, width=16, multipliers=(1, 2), blocks=1)
        >>> initializer = UNetInitializer(1, image_size=8, width=32, multipliers=(1, 1), blocks=1)
        >>> CDRL(energy, initializer, NoiseSchedule()).sample_shape
        (1, 8, 8)
    """

    def __init__(
        self,
        energy: nn.Module,
        initializer: nn.Module | None,
        schedule: NoiseSchedule,
        *,
        sample_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.energy = energy
        self.initializer = initializer
        self.schedule = schedule
        self.sample_shape = _sample_shape(energy, initializer, sample_shape)
        self.step_plan: StepPlan | None = None
        self.classes: int | tuple[str, ...] = getattr(energy, "classes", 0)
        if initializer is not None and getattr(initializer, "classes", 0) != self.classes:
            raise ValueError(
                f"CDRL: the networks must have the same classes, got {self.classes} for the energy "
                f"and {getattr(initializer, 'classes', 0)} for the initializer"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for an unconditional model."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    takes_labels = True

    @property
    def models(self) -> tuple[CDRL]:
        """The model itself, as `Density.models`."""
        return (self,)

    def label_slots(
        self, n: int, label: Label, guidance: float, choose: DrawComponents
    ) -> list[Slot]:
        """Return the terms (1 + w) log p(·|label) - w log p of n samples; see `Density.slots`.

        Args:
            n: number of samples.
            label, guidance: as in `SampleRequest`.
            choose: draws components of mixtures, of which a model has none.

        Raises:
            ValueError, TypeError: a wrong label, or guidance without label or classes.
        """
        if guidance != 0.0 and self.num_classes == 0:
            raise ValueError(
                "guidance: this model is unconditional, so there is nothing to guide by"
            )
        if guidance != 0.0 and label is None:
            raise ValueError("guidance: pass the label to guide towards")
        conditional = Slot(self, self.label_indices(label, n))
        if guidance == 0.0:
            return [conditional]
        unconditional = Slot(self, 0).scaled(-guidance, -guidance)
        return [conditional.scaled(1.0 + guidance, 1.0 + guidance), unconditional]

    @property
    def is_image(self) -> bool:
        """True if samples are images, which a chain denoises and clamps to [-1, 1] at its end."""
        return len(self.sample_shape) == 3

    def plan(self, steps: Steps = None) -> StepPlan:
        """Return the step plan that ``steps`` describes.

        Args:
            steps: "tuned" for the model's ``step_plan``, or any ``steps`` of `NoiseSchedule.plan`.

        Returns:
            A `StepPlan` with one entry per level.

        Raises:
            ValueError: "tuned" for a model without a tuned plan, or as `NoiseSchedule.plan`.
            TypeError: as `NoiseSchedule.plan`.

        Examples:
            >>> from cdrl_fast import CDRL
            >>> CDRL.from_pretrained("digits").plan(5).counts
            (5, 5, 5, 5, 5, 5)
        """
        if not (isinstance(steps, str) and steps == "tuned"):
            return self.schedule.plan(steps)
        if self.step_plan is None:
            raise ValueError(
                'steps: "tuned" needs a model with a tuned step plan, got a model without one; set '
                "model.step_plan = tune_steps(model, data, budget=…), or pass a number of steps"
            )
        return self.schedule.plan(self.step_plan)

    def log_density(self, x: Tensor, t: int = 1, label: Tensor | None = None) -> Tensor:
        """Return the log-density of x_{t-1} at ``x`` up to a constant: f(m_t x, λ_{t-1}) / s_t².

        Args:
            x: (batch, …) in the coordinates of x_{t-1}.
            t: the level, 1 (cleanest) to T.
            label: class indices as integers (batch,), 0 meaning "no label".

        Returns:
            Tensor (batch,), differentiable in ``x``.

        Raises:
            ValueError: ``t`` is not a level.

        Examples:
            >>> import torch
            >>> from cdrl_fast import CDRL
            >>> x = torch.zeros(3, 1, 8, 8, requires_grad=True)
            >>> density = CDRL.from_pretrained("digits").log_density(x, t=1)
            >>> torch.autograd.grad(density.sum(), x)[0].shape
            torch.Size([3, 1, 8, 8])
        """
        level = self.schedule.level(t)
        logsnr = torch.full((1,), level.logsnr, device=x.device, dtype=x.dtype)
        energy: Tensor = self.energy(level.scale * x, logsnr, label)
        return energy / level.energy_variance

    @torch.no_grad()
    def warm_start(self, other: CDRL) -> list[str]:
        """Copy the weights of every layer that ``other`` has too, as a start for training.

        Args:
            other: a model; a layer is copied if its name and the shapes of its tensors are the same
                in both models.

        Returns:
            The names of the layers that were not copied, such as the label embeddings of models
            with different classes.

        Raises:
            ValueError: the models share no layer.

        Examples:
            >>> from cdrl_fast import CDRL
            >>> digits = CDRL.from_pretrained("digits")
            >>> CDRL.from_config(digits.to_config()).warm_start(digits)
            []
        """
        other_modules = dict(other.named_modules())
        not_copied, copied = [], 0
        for name, module in self.named_modules():
            tensors = _tensors(module)
            if not tensors:
                continue
            sources = _tensors(other_modules[name]) if name in other_modules else {}
            if {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in sources.items()}:
                for key, source in sources.items():
                    tensors[key].copy_(source)
                copied += 1
            else:
                not_copied.append(name)
        if not copied:
            raise ValueError("warm_start: the models have no layer in common")
        return not_copied

    def check_class_names(self, names: Sequence[str], source: str) -> None:
        """Check that the data's class names have the same numbers in the model.

        Names that the model does not have are ignored, and so are all names if the model's classes
        have none.

        Args:
            names: class names of the data, in order.
            source: name of the data, for the message.

        Raises:
            ValueError: a class of the model has another number in the data.

        Examples:
            >>> from cdrl_fast import CDRL
            >>> CDRL.from_pretrained("digits").check_class_names(["0", "1"], "binary digits")
        """
        if isinstance(self.classes, int):
            return
        for index, name in enumerate(names):
            if name in self.classes and self.classes.index(name) != index:
                raise ValueError(
                    f"class {name!r} is number {index + 1} of {source!r} and "
                    f"{self.classes.index(name) + 1} of the model: order the data's classes as "
                    f"{', '.join(self.classes)}"
                )

    def label_indices(self, label: Label, n: int) -> Tensor | None:
        """Return labels as class indices.

        Args:
            label: None, a class number from 1 to the number of classes, 0 ("no label"), a class
                name, or a sequence of n of these.
            n: number of samples.

        Returns:
            An int64 tensor (n,), or (1,) if ``label`` is a single class; None if it is None.

        Raises:
            ValueError: an unknown class, a wrong number of labels, or an unconditional model.
            TypeError: labels that are neither integers nor names.

        Examples:
            >>> from cdrl_fast import CDRL
            >>> CDRL.from_pretrained("digits").label_indices(["0", "9"], 2)
            tensor([ 1, 10])
        """
        if label is None:
            return None
        if self.num_classes == 0:
            raise ValueError("label: this model is unconditional; drop the label")
        if isinstance(label, Tensor):
            if label.is_floating_point() or label.dtype == torch.bool:
                raise TypeError(f"label: expected integers, got a tensor of {label.dtype}")
            label = label.tolist()
        single = isinstance(label, (int, str)) or not hasattr(label, "__len__")
        entries: list[Any] = [label] if single else list(label)  # type: ignore[arg-type]
        if not single and len(entries) != n:
            raise ValueError(f"label: expected one label or {n}, got {len(entries)}")
        return torch.tensor([self._label_index(entry) for entry in entries], dtype=torch.int64)

    def _label_index(self, label: Any) -> int:
        if isinstance(label, str):
            if isinstance(self.classes, int) or label not in self.classes:
                known = self.classes if not isinstance(self.classes, int) else "none has a name"
                raise ValueError(f"label: unknown class {label!r}; classes: {known}")
            return self.classes.index(label) + 1
        if isinstance(label, bool) or not hasattr(label, "__index__"):
            raise TypeError(f"label: expected a class number or name, got {label!r}")
        if not 0 <= label <= self.num_classes:
            raise ValueError(
                f"label: expected 1 to {self.num_classes} (0 is 'no label'), got {label}"
            )
        return int(label)

    def to_config(self) -> dict[str, Any]:
        """Return the model's configuration, everything except its weights.

        Returns:
            A dictionary of JSON values, which `from_config` reads.

        Examples:
            >>> from cdrl_fast import CDRL
            >>> CDRL.from_pretrained("digits").to_config()["sample_shape"]
            [1, 8, 8]
        """
        tuned = {} if self.step_plan is None else {"step_plan": self.plan("tuned").to_dict()}
        return {
            "format": 1,
            "library": "cdrl_fast",
            "energy": _network_config(self.energy),
            "initializer": None if self.initializer is None else _network_config(self.initializer),
            "schedule": self.schedule.to_dict(),
            "sample_shape": list(self.sample_shape),
            **tuned,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], networks: Networks | None = None) -> CDRL:
        """Build a model from its configuration.

        Args:
            config: the configuration, as `to_config` returns it.
            networks: energy and initializer (or None) to use. None: networks with new random
                weights are built from ``config``.

        Returns:
            The model.

        Raises:
            CheckpointError: ``networks`` is None and ``config`` has a network that this library
                does not have.

        Examples:
            >>> from cdrl_fast import CDRL
            >>> config = CDRL.from_pretrained("digits").to_config()
            >>> CDRL.from_config(config).num_classes
            10
        """
        initializer = config["initializer"]
        if networks is None:
            networks = (
                _build_network(config["energy"]),
                None if initializer is None else _build_network(initializer),
            )
        model = cls(
            *networks,
            NoiseSchedule(**config["schedule"]),
            sample_shape=config["sample_shape"],
        )
        if "step_plan" in config:
            model.step_plan = model.schedule.plan(StepPlan(**config["step_plan"]))
        return model

    def save_pretrained(
        self, folder: str | Path, *, card: ModelCard | None = None, name: str | None = None
    ) -> Path:
        """Write weights, ``config.json``, their checksums and a model card into ``folder``.

        A new folder is written atomically; see `cdrl_fast.storage.folder.write_folder`. An existing
        card is kept unless ``card`` is passed. For networks that are not from this library only the
        weights are saved; `from_pretrained` then needs ``networks=``.

        Args:
            folder: created if it does not exist.
            card: contents of ``README.md`` besides the facts that the model itself provides.
            name: the model's name in the card; the folder's name by default.

        Returns:
            The folder.

        Raises:
            CheckpointError: the folder is a training run, or its path is a file.
            OSError: no free space, or no permission to write.

        Examples:
            >>> from cdrl_fast import CDRL
            >>> CDRL.from_pretrained("digits").save_pretrained("my-digits")  # doctest: +SKIP
            PosixPath('my-digits')
        """
        if checkpoints_of(Path(folder)):
            raise CheckpointError(
                f"{folder}: expected a folder without checkpoints, got a training run, from which "
                "only checkpoints are loaded; save the model into another folder"
            )
        files = {
            CONFIG: json_to_bytes(self.to_config()),
            WEIGHTS: tensors_to_bytes(self.state_dict()),
        }
        folder = write_folder(folder, files)
        card_files = (card or ModelCard()).files(self, name or folder.resolve().name)
        for file, data in card_files.items():
            if card is not None or not (folder / file).exists():
                write_atomic(folder / file, data)
        return folder

    def push_to_hub(
        self, repository: str, *, card: ModelCard | None = None, private: bool = False
    ) -> str:
        """Upload the model to the Hugging Face Hub, as `save_pretrained` writes it.

        Args:
            repository: "owner/name"; created if it does not exist. Log in first: ``hf auth login``.
            card: as in `save_pretrained`.
            private: True to make a new repository private; ignored for an existing one.

        Returns:
            The address of the commit.

        Raises:
            ImportError: ``huggingface_hub`` is not installed.
            huggingface_hub.errors.HfHubHTTPError: the Hub refused the upload.

        Examples:
            >>> from cdrl_fast import CDRL
            >>> CDRL.from_pretrained("runs/digits").push_to_hub("you/digits")  # doctest: +SKIP
            'https://huggingface.co/you/digits/commit/…'
        """
        hub = optional_module("huggingface_hub", "huggingface_hub", "hub")
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save_pretrained(Path(temporary) / "model", card=card, name=repository)
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=folder))

    @classmethod
    def from_pretrained(cls, name: str | Path, networks: Networks | None = None) -> CDRL:
        """Load a model and verify the checksums of its files.

        Args:
            name: a shipped model ("digits", "fashion-mnist" or "checkerboard"), a folder written by
                `save_pretrained` or by a training run (its newest checkpoint, with EMA weights), or
                a Hugging Face Hub id, "owner/name".
            networks: energy and initializer (or None) to load the weights into, for models whose
                networks are not from this library.

        Returns:
            The model, in eval mode, on the CPU.

        Raises:
            CheckpointError: an unknown name, missing or corrupt files, or ``networks`` that the
                weights do not fit.

        Examples:
            >>> from cdrl_fast import CDRL
            >>> CDRL.from_pretrained("digits").classes
            ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
        """
        folder, files = newest_readable(find_saved(name))
        config = read_json(folder, files, CONFIG)
        if config.get("library") != "cdrl_fast" or config.get("format") != 1:
            raise CheckpointError(
                f"{folder / CONFIG}: not a cdrl_fast model of format 1; load checkpoints of the "
                "authors' code with load_released_checkpoint"
            )
        model = cls.from_config(config, networks)
        tensors = read_tensors(folder, files, WEIGHTS)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(
                f"{folder}: the weights do not fit config.json: {error}"
            ) from None
        return model.eval()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters and buffers, without those of its submodules."""
    return dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))


def _sample_shape(
    energy: nn.Module, initializer: nn.Module | None, sample_shape: Sequence[int] | None
) -> tuple[int, ...]:
    if sample_shape is not None:
        return tuple(int(size) for size in sample_shape)
    for network in (initializer, energy):
        config = getattr(network, "config", {})
        if "image_size" in config:
            return (config["image_channels"], config["image_size"], config["image_size"])
        if "dim" in config:
            return (config["dim"],)
    raise ValueError(
        "CDRL: the networks do not define the shape of a sample; pass "
        "sample_shape=(channels, height, width) or (dim,)"
    )


def _network_config(network: nn.Module) -> dict[str, Any]:
    kind = type(network)
    if kind not in NETWORKS.values():
        return {"type": f"{kind.__module__}.{kind.__qualname__}"}
    config: dict[str, Any] = network.config  # type: ignore[assignment]
    return {"type": kind.__name__, **config}


def _build_network(config: dict[str, Any]) -> nn.Module:
    options = dict(config)
    name = options.pop("type")
    if name not in NETWORKS:
        raise CheckpointError(
            f"config.json: {name} is not a network of this library ({', '.join(NETWORKS)}); build "
            "it and pass networks=(energy, initializer)"
        )
    return NETWORKS[name](**options)
