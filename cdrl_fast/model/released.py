"""Import of the checkpoints that CDRL's authors released (``.pth.tar``).

Such a file is a pickled dictionary of live network states, averaged (EMA) parameters and optimiser
states. It does not tell the architecture, which is inferred from the names and shapes of its
tensors; then every tensor is held against the network built from it, so that a file either fits
entirely or is refused. The model gets the EMA parameters and, for spectral norm, the live vectors u
and v: what the authors sample with.

Source: the files published with Zhu, Xie, Wu, Gao, "Learning Energy-Based Models by Cooperative
Diffusion Recovery Likelihood", ICLR 2024.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from cdrl_fast.errors import CheckpointError
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import NoiseSchedule
from cdrl_fast.networks import MLPEnergy, MLPInitializer, ResNetEnergy, UNetInitializer

# From our names to the file's: of the module (the longest match wins), then of what is in it.
SPECTRAL = {"weight": "weight_orig", "u": "weight_u", "v": "weight_v"}
ENERGY = {
    "embedding.linear1": "temb_map1",
    "embedding.linear2": "temb_map2",
    "embedding.label": "y_map",
    "stem": "module_list.0",
    "gain": "g",
    "linear1": "conv1",
    "linear2": "conv2",
    "level": "temb_map",
    "shortcut": "short_cut",
}
UNET = {
    "embed1": "time_mlp.1",
    "embed2": "time_mlp.3",
    "label": "y_mlp.0",
    "stem": "init_conv",
    "middle.0": "mid_block1",
    "middle.1": "mid_attn",
    "middle.2": "mid_block2",
    "head": "final_conv",
    "condition": "mlp.1",
    "shortcut": "res_conv",
    "qkv": "to_qkv",
    "out": "to_out",
}
POINTS = {
    "stem": "h1",
    "embed1": "temb_map.0",
    "embed2": "temb_map.2",
    "head": "final_dense",
    "norm1": "module_list.0.norm1",
    "norm2": "module_list.0.norm2",
    "linear1": "module_list.0.conv1",
    "linear2": "module_list.0.conv2",
    "condition": "module_list.0.mlp.1",
}


def load_released_checkpoint(
    path: str | Path, *, image_size: int = 32, schedule: NoiseSchedule | None = None
) -> CDRL:
    """The model of an authors' checkpoint, with its EMA parameters.

    Widths, multipliers, blocks, attention, image channels and classes are inferred. For samples as
    the authors' code draws them, pass ``denoise_scale=2`` to `Sampler.sample`.

    Args:
        path: the file: of images, of images with classes, or of 2-D points.
        image_size: height and width of the images, which the file does not tell; unused for points.
        schedule: None for the published one: ``NoiseSchedule()`` for images,
            ``NoiseSchedule(kappa=1e-3, step_scale="constant")`` for points.

    Returns:
        A CDRL in eval mode, on the CPU, in float32.

    Raises:
        CheckpointError: the file is missing, not of this format, incomplete, fits no architecture
            or needs code to be run (none is); says what was found and what was expected.
        ValueError, TypeError: an ``image_size`` or ``schedule`` that is none.

    Examples:
        >>> from cdrl_fast import Sampler, load_released_checkpoint
        >>> model = load_released_checkpoint("checkpoint.pth.tar")  # doctest: +SKIP
        >>> images = Sampler(model).sample(16, denoise_scale=2.0)  # doctest: +SKIP
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int):
        raise TypeError(f"image_size: expected an integer, got {image_size!r}")
    if image_size < 1:
        raise ValueError(f"image_size: expected at least 1, got {image_size}")
    if not isinstance(schedule, NoiseSchedule | None):
        raise TypeError(f"schedule: expected a NoiseSchedule or None, got {schedule!r}")
    path = Path(path)
    stored_energy, stored_initializer = _stored_networks(path, _read(path))
    energy = _energy(stored_energy, image_size)
    initializer = _initializer(stored_initializer, image_size)
    _check_pair(stored_energy, energy, initializer)
    if schedule is None:
        images = isinstance(energy, ResNetEnergy)
        schedule = NoiseSchedule() if images else NoiseSchedule(kappa=1e-3, step_scale="constant")
    return CDRL(energy, initializer, schedule).eval()


@dataclass(frozen=True, eq=False)
class _Stored:
    """One network of a file.

    Attributes:
        path, entry: where it was found ("p" or "pi"), for messages.
        tensors: live parameters and buffers by name, in the file's order, without the prefix of a
            parallel wrapper and with spectral norm in the hook's spelling.
        shadow: what the file has for the list of EMA parameters.
    """

    path: Path
    entry: str
    tensors: dict[str, Tensor]
    shadow: Any

    def misfit(self, found: str, expected: str, kind: str = "state_dict") -> CheckpointError:
        """The error that refuses the file."""
        where = f"{self.path}: {self.entry}_{kind}"
        return CheckpointError(f"{where}: found {found}; expected {expected}")

    def shape(self, name: str, *axes: str) -> tuple[int, ...]:
        """Shape of a tensor that there must be, with one dimension for each of ``axes``."""
        shape = tuple(self.tensors[name].shape) if name in self.tensors else None
        if shape is None or len(shape) != len(axes):
            found = f"no {name}" if shape is None else f"{name} of shape {shape}"
            raise self.misfit(found, f"{name} of shape ({', '.join(axes)})")
        return shape

    def indices(self, prefix: str) -> list[int]:
        """The numbers N for which there are names ``prefix.N.…``, ascending."""
        numbered = re.compile(re.escape(prefix) + r"\.(0|[1-9][0-9]{0,5})\.")
        found = (numbered.match(name) for name in self.tensors)
        return sorted({int(match[1]) for match in found if match})

    def classes(self, name: str) -> int:
        """Classes that the one-hot map ``name`` is for; 0 without it."""
        return self.shape(name, "4 width", "classes + 1")[1] - 1 if name in self.tensors else 0

    def multipliers(self, widths: Sequence[int], width: int) -> tuple[int, ...]:
        """``widths`` as multiples of ``width``."""
        if width < 1 or any(w % width for w in widths):
            raise self.misfit(f"channels {list(widths)}", f"multiples of the width, {width}")
        return tuple(w // width for w in widths)

    def check_halvings(self, image_size: int, resolutions: int) -> None:
        """Refuses an image size that the resolutions do not divide."""
        if image_size % 2 ** (resolutions - 1):
            expected = f"an image_size that can be halved {resolutions - 1} times, got {image_size}"
            raise self.misfit(f"{resolutions} resolutions", expected)


def _read(path: Path) -> dict[str, Any]:
    """The file's dictionary, read without running any code of it."""
    expected = "expected an authors' .pth.tar, a dictionary of tensors and plain containers"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; {expected}") from error
    except Exception as error:
        # A damaged file can fail in any way. Not chained: torch's message advises to run the code.
        found = f"no torch file, or a damaged one ({type(error).__name__})"
        needed = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, UnpicklingError) and needed:
            found = f"a pickle that wants to run {needed[1]}, which is refused"
        raise CheckpointError(f"{path}: found {found}; {expected}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found a {type(content).__name__}; {expected}")
    return content


def _stored_networks(path: Path, content: dict[str, Any]) -> tuple[_Stored, _Stored]:
    """Energy and initializer, told apart by the names of their tensors."""
    wanted = ("p_state_dict", "pi_state_dict", "p_ema_state_dict", "pi_ema_state_dict")
    missing = [name for name in wanted if not isinstance(content.get(name), dict)]
    if missing:
        raise CheckpointError(
            f"{path}: found the entries {_some(content)}; expected dictionaries {_some(missing)} "
            "too: the live parameters give the architecture, the EMA parameters are what is used"
        )
    stored = [_stored(path, entry, content) for entry in ("p", "pi")]
    energies = [network for network in stored if "temb_map1.bias" in network.tensors]
    others = [network for network in stored if network not in energies]
    if len(energies) != 1:
        raise CheckpointError(
            f"{path}: found {len(energies)} energy networks in p_state_dict and pi_state_dict; "
            "expected one, with temb_map1.bias, and one initializer"
        )
    return energies[0], others[0]


def _stored(path: Path, entry: str, content: dict[str, Any]) -> _Stored:
    state = content[f"{entry}_state_dict"]
    stored = _Stored(path, entry, {}, content[f"{entry}_ema_state_dict"].get("shadow_params"))
    prefix = "module." if all(str(key).startswith("module.") for key in state) else ""
    for key, value in state.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise stored.misfit(f"{key!r}: {type(value).__name__}", "a name: a dense float tensor")
        name = key.removeprefix(prefix).replace("parametrizations.weight.original", "weight_orig")
        name = name.replace("parametrizations.weight.0._", "weight_")
        if name in stored.tensors:
            raise stored.misfit(f"{name} in both spellings of spectral norm", "one of them")
        stored.tensors[name] = value
    return stored


def _energy(stored: _Stored, image_size: int) -> nn.Module:
    width = stored.shape("temb_map1.weight_orig", "4 width", "width")[1]
    blocks = [i for i in stored.indices("module_list") if i > 0]
    if not blocks:
        raise stored.misfit("no module_list.1", "residual blocks")
    if "final_dense.weight" in stored.tensors:
        return _point_energy(stored, width, blocks)
    # Pools are counted but have no tensors, so a number that is skipped begins a new resolution.
    starts = [i for i in blocks if i - 1 not in blocks]
    count = starts[1] - starts[0] - 1 if len(starts) > 1 else len(blocks)
    numbers = {
        f"stages.{i}.{j}": 1 + i * (count + 1) + j for i in range(len(starts)) for j in range(count)
    }
    if list(numbers.values()) != blocks:
        expected = "as many at every resolution, with one number left out in between, for the pool"
        raise stored.misfit(f"residual blocks numbered {blocks} in module_list", expected)
    stored.check_halvings(image_size, len(starts))
    widths = [stored.shape(f"module_list.{i}.g", "1", "channels", "1", "1")[1] for i in starts]
    stem = stored.shape("module_list.0.weight_orig", "width", "image channels", "3", "3")
    network = _built(
        stored,
        ResNetEnergy,
        image_channels=stem[1],
        width=width,
        multipliers=stored.multipliers(widths, width),
        blocks=count,
        classes=stored.classes("y_map.weight_orig"),
    )
    places = {stage: f"module_list.{number}" for stage, number in numbers.items()}
    return _filled(network, stored, {**ENERGY, **places, "head": "temb_final"})


def _point_energy(stored: _Stored, width: int, blocks: list[int]) -> nn.Module:
    dim = stored.shape("module_list.0.weight_orig", "width", "dim")[1]
    widths = [stored.shape(f"module_list.{i}.g", "1", "features")[1] for i in blocks]
    multipliers = stored.multipliers(widths, width)
    network = _built(stored, MLPEnergy, dim=dim, width=width, multipliers=multipliers)
    places = {f"blocks.{i}": f"module_list.{i + 1}" for i in range(len(blocks))}
    return _filled(network, stored, {**ENERGY, **places, "head": "final_dense"})


def _initializer(stored: _Stored, image_size: int) -> nn.Module:
    if "h1.weight" in stored.tensors:
        width, dim = stored.shape("h1.weight", "width", "dim")
        embedding = stored.shape("temb_map.0.weight", "embedding", "embedding")[1]
        network = _built(stored, MLPInitializer, dim=dim, width=width, embedding=embedding)
        return _filled(network, stored, POINTS)
    width = stored.shape("time_mlp.1.weight", "4 width", "width")[1]
    levels = stored.indices("downs")
    if not levels or levels != list(range(len(levels))):
        raise stored.misfit(f"downs numbered {levels}", "downs.0, downs.1, …")
    axes = ("channels", "channels before", "3", "3")
    widths = [stored.shape(f"downs.{i}.0.conv1.weight", *axes)[0] for i in levels]
    if any(w % 32 for w in (width, *widths)):
        raise stored.misfit(f"channels {[width, *widths]}", "multiples of 32, for GroupNorm(32)")
    stored.check_halvings(image_size, len(levels))
    blocks, attended = _unet_layers(stored, len(levels))
    network = _built(
        stored,
        UNetInitializer,
        image_channels=stored.shape("init_conv.weight", "width", "image channels", "3", "3")[1],
        image_size=image_size,
        width=width,
        multipliers=stored.multipliers(widths, width),
        blocks=blocks,
        attention=tuple(image_size >> i for i in attended),
        classes=stored.classes("y_mlp.0.weight"),
    )
    return _filled(network, stored, UNET)


def _unet_layers(stored: _Stored, levels: int) -> tuple[int, list[int]]:
    """Blocks a resolution, and which resolutions have attention; any other order is refused."""

    def layers(part: str) -> list[str]:
        names = (f"{part}.{i}.to_qkv.weight" for i in stored.indices(part))
        return ["attention" if name in stored.tensors else "block" for name in names]

    last = levels - 1
    blocks = layers(f"downs.{last}").count("block")
    attended = [i for i in range(levels) if "attention" in layers(f"downs.{i}")]
    for i in range(levels):
        unit = ["block", "attention"] if i in attended else ["block"]
        down = unit * blocks + ["block"] * (i < last)
        up = unit * (blocks + 1) + ["block"] * (i > 0)
        for part, expected in ((f"downs.{i}", down), (f"ups.{last - i}", up)):
            if layers(part) != expected:
                raise stored.misfit(
                    f"in {part} {_some(layers(part))}",
                    f"{_some(expected)}: blocks as in downs.{last}, attention at levels {attended}",
                )
    return blocks, attended


def _built(stored: _Stored, kind: type[nn.Module], **config: Any) -> nn.Module:
    """A fresh network; the caller's random numbers stay as they are."""
    try:
        with torch.random.fork_rng(devices=[]):
            return kind(**config)
    except (ValueError, RuntimeError) as error:
        raise stored.misfit(f"shapes for {config}", f"an architecture: {error}") from None


def _filled(network: nn.Module, stored: _Stored, names: dict[str, str]) -> nn.Module:
    """``network`` with the file's EMA parameters and live u and v; ``names`` as in `_file_name`."""
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    file_names = {key: _file_name(key, shapes, names) for key in shapes}
    expected = {name: shapes[key] for key, name in file_names.items()}
    described = f"the keys and shapes of {type(network).__name__}({network.config})"
    unknown = [name for name in stored.tensors if name not in expected]
    missing = [name for name in expected if name not in stored.tensors]
    if unknown or missing:
        found = f"unknown keys ({_some(unknown)}) and missing ones ({_some(missing)})"
        raise stored.misfit(found, described)
    for name, value in stored.tensors.items():
        if tuple(value.shape) != expected[name]:
            found = f"{name} of shape {tuple(value.shape)}"
            raise stored.misfit(found, f"{expected[name]}, from {described}")
    values = {**stored.tensors, **_averaged(stored)}
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise stored.misfit(f"NaN or infinity in {name} (or its EMA)", "finite numbers")
    network.load_state_dict({key: values[name] for key, name in file_names.items()})
    return network


def _file_name(key: str, keys: Iterable[str], names: dict[str, str]) -> str:
    """The file's name of our tensor ``key``, one of ``keys``."""
    parts = key.split(".")
    if ".".join([*parts[:-1], "u"]) in keys:
        parts[-1] = SPECTRAL.get(parts[-1], parts[-1])
    cuts = (cut for cut in range(len(parts), 0, -1) if ".".join(parts[:cut]) in names)
    cut = next(cuts, 0)
    module = [names[".".join(parts[:cut])]] if cut else []
    return ".".join([*module, *(names.get(part, part) for part in parts[cut:])])


def _averaged(stored: _Stored) -> dict[str, Tensor]:
    """The EMA parameters by name.

    They are listed in the order of ``parameters()``: that of the live state without its buffers.
    """
    names = [name for name in stored.tensors if not name.endswith((".weight_u", ".weight_v"))]
    shadow, kind = stored.shadow, "ema_state_dict"
    if not isinstance(shadow, list | tuple) or len(shadow) != len(names):
        found = f"{len(shadow)} tensors" if hasattr(shadow, "__len__") else type(shadow).__name__
        expected = f"a list of {len(names)}, one for each parameter"
        raise stored.misfit(f"in shadow_params {found}", expected, kind)
    for index, (name, value) in enumerate(zip(names, shadow, strict=True)):
        shape = tuple(stored.tensors[name].shape)
        if not _is_plain(value) or tuple(value.shape) != shape:
            found = f"of shape {tuple(value.shape)}" if _is_plain(value) else type(value).__name__
            raise stored.misfit(f"shadow_params[{index}] {found}", f"{shape}, for {name}", kind)
    return dict(zip(names, shadow, strict=True))


def _check_pair(stored: _Stored, energy: nn.Module, initializer: nn.Module) -> None:
    """Refuses two networks that are in order but do not belong together."""
    ours: dict[str, Any] = energy.config  # type: ignore[assignment]
    others: dict[str, Any] = initializer.config  # type: ignore[assignment]
    for key in ("dim", "image_channels", "classes"):
        if ours.get(key) != others.get(key):
            raise stored.misfit(
                f"an energy of {key} {ours.get(key)} and an initializer of {key} {others.get(key)}",
                "two networks of one model",
            )


def _is_plain(value: Any) -> bool:
    """Whether it is a dense floating-point tensor that holds its numbers."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided
    return bool(dense and value.is_floating_point() and value.device.type == "cpu")


def _some(names: Iterable[Any]) -> str:
    """The first few names, for a message."""
    listed = [str(name) for name in names]
    more = f", … ({len(listed)} in all)" if len(listed) > 8 else ""
    return (", ".join(listed[:8]) or "none") + more
