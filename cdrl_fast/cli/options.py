"""Options that several commands share, and the parsers of their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdrl_fast.precision import PrecisionName
from cdrl_fast.sampling.request import SampleOptions

if TYPE_CHECKING:
    import torch

    from cdrl_fast.data import Dataset
    from cdrl_fast.model.cdrl import CDRL
    from cdrl_fast.model.schedule import Steps


@dataclass(frozen=True, kw_only=True)
class ModelCommand:
    """A command that uses a model."""

    model: str = "digits"
    """A shipped model, the folder of a model or run, or a Hub id."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""

    def load_model(self) -> CDRL:
        """Return the model, on the device."""
        from cdrl_fast import CDRL

        return CDRL.from_pretrained(self.model).to(parse_device(self.device))


@dataclass(frozen=True, kw_only=True)
class SamplingCommand(ModelCommand):
    """A command that draws samples; its options are those of `SampleRequest`."""

    label: tuple[str, ...] = ()
    """Class names or numbers, cycled over the samples."""
    guidance: float = 0.0
    """Weight of classifier-free guidance towards the label."""
    steps: tuple[str, ...] = ()
    """Langevin steps per level: one number, one per level 1 … T, or tuned."""
    correctors: int = 0
    """Extra Langevin steps after each level."""
    seed: int = 0
    """Seed of the noise: equal seeds give equal samples."""
    batch_size: int | None = None
    """Samples per batch, for less memory; by default up to 1,024, or 512 into a folder."""
    precision: PrecisionName = "auto"
    """Precision of the networks; auto: bf16 if the processor has it in hardware, else fp32."""

    def sample_options(self, model: CDRL) -> SampleOptions:
        """Return the keyword arguments of `Sampler.sample`."""
        labels = parse_labels(self.label, model)
        fields: Any = {k: v for k, v in vars(self).items() if k in SampleOptions.__annotations__}
        options: SampleOptions = fields
        options["steps"], options["progress"] = parse_steps(self.steps), True
        options["label"] = labels[0] if len(labels) == 1 else labels or None
        return options


def parse_steps(options: tuple[str, ...]) -> Steps:
    """Return ``--steps``: one count, one count per level 1 … T (3/2/1 or 3 2 1), or tuned.

    Raises:
        ValueError: an entry is not a whole number.
    """
    entries = [entry for option in options for entry in option.split("/")]
    if entries == ["tuned"]:
        return "tuned"
    try:
        counts = tuple(int(entry) for entry in entries)
    except ValueError:
        raise ValueError(
            "steps: expected one number, one number per level 1 … T, or tuned, got "
            f"{' '.join(options)!r}"
        ) from None
    return None if not counts else counts[0] if len(counts) == 1 else counts


def load_split(
    spec: str, image_size: int | None, held_out: float
) -> tuple[Dataset, Dataset | None]:
    """Return the training data, and the held-out data, None where ``held_out`` is 0."""
    from cdrl_fast.data import load_data

    data = load_data(spec, image_size=image_size)
    return data.split(held_out) if held_out else (data, None)


def parse_device(name: str) -> torch.device:
    """Return the device of a name; auto is a GPU if there is one, else the CPU.

    Raises:
        ValueError: an unknown name, or a GPU that this machine does not have.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: got {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return device


def parse_labels(options: Sequence[str], model: CDRL) -> list[Any]:
    """Return the labels, as numbers where the classes have no names."""
    numbered = isinstance(model.classes, int)
    return [int(option) if numbered and option.isdecimal() else option for option in options]
