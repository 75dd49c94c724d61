"""Import of the checkpoints that CDRL's authors released (``.pth.tar``).

Such a file is a pickled dictionary of live network states, averaged (EMA) parameters and optimiser
states. It says nothing about the architecture, which is read off the tensors' names and shapes; the
tensors are then held, name by name and shape by shape, against the network built from it, so a file
either fits entirely or is refused. The model gets the EMA parameters and, for spectral norm, the
live vectors u and v, as in the authors' sampling.

Format: Zhu, Xie, Wu, Gao, "Learning Energy-Based Models by Cooperative Diffusion Recovery
Likelihood", ICLR 2024, its published checkpoints.
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
from cdrl_fast.model import CDRL
from cdrl_fast.networks import MLPEnergy, MLPInitializer, ResNetEnergy, UNetInitializer
from cdrl_fast.schedule import NoiseSchedule

_ENTRIES = ("p", "pi")
# torch.nn.utils.parametrizations.spectral_norm's names, and those of the older spectral_norm hook.
_HOOK_SPELLING = {
    "parametrizations.weight.original": "weight_orig",
    "parametrizations.weight.0._u": "weight_u",
    "parametrizations.weight.0._v": "weight_v",
}
_SPECTRAL = {"weight": "weight_orig", "u": "weight_u", "v": "weight_v"}
_ENERGY_LAYERS = {
    "gain": "g",
    "linear1": "conv1",
    "linear2": "conv2",
    "level": "temb_map",
    "shortcut": "short_cut",
}
_INITIALIZER_LAYERS = {
    "linear1": "conv1",
    "linear2": "conv2",
    "condition": "mlp.1",
    "shortcut": "res_conv",
    "qkv": "to_qkv",
    "out": "to_out",
}
_EMBEDDING_PLACES = {
    "embedding.linear1": "temb_map1",
    "embedding.linear2": "temb_map2",
    "embedding.label": "y_map",
    "stem": "module_list.0",
}
_UNET_PLACES = {
    "embed1": "time_mlp.1",
    "embed2": "time_mlp.3",
    "label": "y_mlp.0",
    "stem": "init_conv",
    "middle.0": "mid_block1",
    "middle.1": "mid_attn",
    "middle.2": "mid_block2",
    "head": "final_conv",
}
_POINT_PLACES = {
    "stem": "h1",
    "embed1": "temb_map.0",
    "embed2": "temb_map.2",
    "head": "final_dense",
    **{layer: "module_list.0" for layer in ("norm1", "linear1", "norm2", "condition", "linear2")},
}


def load_released_checkpoint(
    path: str | Path, *, image_size: int = 32, schedule: NoiseSchedule | None = None
) -> CDRL:
    """The model of an authors' checkpoint, with its EMA parameters.

    Widths, multipliers, blocks, attention, image channels and classes are inferred. For samples as
    the authors' code draws them, pass ``denoise_scale=2`` to `Sampler.sample`.

    Args:
        path: the file; of images, class-conditional images or 2-D points.
        image_size: height and width of the images, which the file does not tell; decides at which
            sizes the initializer's attention is said to be. Ignored for points.
        schedule: None for the published one: ``NoiseSchedule()`` for images,
            ``NoiseSchedule(kappa=1e-3, step_scale="constant")`` for points.

    Returns:
        A CDRL in eval mode, on the CPU, in float32.

    Raises:
        CheckpointError: the file is missing, not of this format, incomplete, needs code to be run
            for reading it (none ever is), or fits no architecture; says what was found.
        ValueError, TypeError: an ``image_size`` or ``schedule`` that is none.
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int):
        raise TypeError(f"image_size: expected an integer, got {image_size!r}")
    if image_size < 1:
        raise ValueError(f"image_size: expected at least 1, got {image_size}")
    if not isinstance(schedule, NoiseSchedule | None):
        raise TypeError(f"schedule: expected a NoiseSchedule or None, got {schedule!r}")
    path = Path(path)
    stored_energy, stored_initializer = _networks_of(path, _read(path))
    energy = _energy(stored_energy)
    initializer = _initializer(stored_initializer, image_size)
    _check_pair(stored_energy, energy, initializer, image_size)
    if schedule is None:
        images = isinstance(energy, ResNetEnergy)
        schedule = NoiseSchedule() if images else NoiseSchedule(kappa=1e-3, step_scale="constant")
    return CDRL(energy, initializer, schedule).eval()


@dataclass(frozen=True)
class _Stored:
    """One network of a file.

    Attributes:
        path, entry: where it is from, for messages; the entry is "p" or "pi".
        tensors: live parameters and buffers by name, in the file's order, without the prefix of a
            parallel wrapper and with spectral norm in its hook spelling.
        shadow: what the file has as the list of EMA parameters.
    """

    path: Path
    entry: str
    tensors: dict[str, Tensor]
    shadow: Any

    def misfit(self, found: str, expected: str, entry: str = "state_dict") -> CheckpointError:
        """The error that refuses the file."""
        where = f"{self.path}: {self.entry}_{entry}"
        return CheckpointError(f"{where}: found {found}; expected {expected}")

    def shape(self, name: str, *axes: str) -> tuple[int, ...]:
        """The shape of a tensor that every architecture has; ``axes`` describe what is expected."""
        if name not in self.tensors:
            near = [key for key in self.tensors if key.split(".")[0] == name.split(".")[0]]
            raise self.misfit(f"no {name} (near it: {_some(near)})", f"{name}, ({', '.join(axes)})")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != len(axes):
            raise self.misfit(f"{name} of shape {shape}", f"({', '.join(axes)})")
        return shape

    def indices(self, prefix: str) -> list[int]:
        """The numbers N, ascending, for which there are names ``prefix.N.…``."""
        numbered = re.compile(re.escape(prefix) + r"\.(0|[1-9][0-9]{0,5})\.")
        found = (numbered.match(name) for name in self.tensors)
        return sorted({int(match[1]) for match in found if match})

    def classes(self, name: str) -> int:
        """How many classes the one-hot map ``name`` of shape (4 width, classes + 1) is for."""
        return self.shape(name, "4 width", "classes + 1")[1] - 1 if name in self.tensors else 0

    def multipliers(self, widths: Sequence[int], width: int) -> tuple[int, ...]:
        """``widths`` as multiples of ``width``."""
        if width < 1 or any(w % width for w in widths):
            raise self.misfit(f"channels {list(widths)}", f"multiples of the embedding's {width}")
        return tuple(w // width for w in widths)


def _read(path: Path) -> dict[str, Any]:
    """The file's dictionary, read without running any code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except Exception as error:  # a damaged file fails in any way there is
        expected = "expected an authors' .pth.tar, which holds tensors and plain containers"
        needed = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, UnpicklingError) and needed:
            raise CheckpointError(
                f"{path}: found a pickle that would run code of its own choice ({needed[1]}), which "
                f"was not run; {expected}"
            ) from None
        raise CheckpointError(f"{path}: found no torch file, or a damaged one; {expected}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found a {type(content).__name__}; expected a dictionary")
    return content


def _networks_of(path: Path, content: dict[str, Any]) -> tuple[_Stored, _Stored]:
    """Energy and initializer, told apart by the names of their tensors."""
    wanted = [f"{entry}_{kind}state_dict" for kind in ("", "ema_") for entry in _ENTRIES]
    absent = [name for name in wanted if not isinstance(content.get(name), dict)]
    if absent:
        reason = ""
        if all("ema" in name for name in absent):
            reason = "; sampling uses the EMA parameters, so the live ones alone will not do"
        raise CheckpointError(
            f"{path}: found the entries {_some(content)}; expected dictionaries {_some(absent)} as "
            f"well{reason}"
        )
    networks = [_stored(path, entry, content) for entry in _ENTRIES]
    energies = [network for network in networks if network.indices("module_list")[:2] == [0, 1]]
    others = [network for network in networks if network not in energies]
    if len(energies) != 1:
        names = " and ".join(_some(network.tensors) for network in networks)
        raise CheckpointError(
            f"{path}: found {len(energies)} energy networks in p_state_dict and pi_state_dict, which "
            f"hold {names}; expected one (temb_map1, module_list.0, module_list.1 …) and one "
            "initializer"
        )
    return energies[0], others[0]


def _stored(path: Path, entry: str, content: dict[str, Any]) -> _Stored:
    state = content[f"{entry}_state_dict"]
    stored = _Stored(path, entry, {}, content[f"{entry}_ema_state_dict"].get("shadow_params"))
    prefix = "module." if all(str(key).startswith("module.") for key in state) else ""
    for key, value in state.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise stored.misfit(f"{key!r}: {type(value).__name__}", "names with dense float tensors")
        name = key.removeprefix(prefix)
        for spelling, hook in _HOOK_SPELLING.items():
            if name.endswith(f".{spelling}"):
                name = name.removesuffix(spelling) + hook
        if name in stored.tensors:
            raise stored.misfit(f"{name} in both spellings of spectral norm", "one of them")
        stored.tensors[name] = value
    return stored


def _energy(stored: _Stored) -> nn.Module:
    width = stored.shape("temb_map1.weight_orig", "4 width", "width")[1]
    stem = "module_list.0.weight_orig"
    blocks = stored.indices("module_list")[1:]
    if len(getattr(stored.tensors.get(stem), "shape", ())) == 2:
        dim = stored.shape(stem, "width", "dim")[1]
        widths = [stored.shape(f"module_list.{i}.g", "1", "channels")[1] for i in blocks]
        config = {"dim": dim, "width": width, "multipliers": stored.multipliers(widths, width)}
        places = {f"blocks.{i}": f"module_list.{i + 1}" for i in range(len(blocks))}
        network = _on_meta(stored, MLPEnergy, config)
        return _filled(network, stored, {**places, "head": "final_dense"}, _ENERGY_LAYERS)
    # Pools are counted but have no tensors: a number left out begins a new resolution.
    starts = [i for i in blocks if i - 1 not in blocks]
    counts = [sum(a <= i < b for i in blocks) for a, b in _pairs([*starts, blocks[-1] + 1])]
    if len(set(counts)) != 1:
        raise stored.misfit(f"{counts} blocks at the resolutions", "as many at every resolution")
    widths = [stored.shape(f"module_list.{i}.g", "1", "channels", "1", "1")[1] for i in starts]
    config = {
        "image_channels": stored.shape(stem, "width", "image channels", "3", "3")[1],
        "width": width,
        "multipliers": stored.multipliers(widths, width),
        "blocks": counts[0],
        "classes": stored.classes("y_map.weight_orig"),
    }
    places = {
        f"stages.{i}.{j}": f"module_list.{1 + i * (counts[0] + 1) + j}"
        for i in range(len(counts))
        for j in range(counts[0])
    }
    network = _on_meta(stored, ResNetEnergy, config)
    return _filled(network, stored, {**places, "head": "temb_final"}, _ENERGY_LAYERS)


def _initializer(stored: _Stored, image_size: int) -> nn.Module:
    if "h1.weight" in stored.tensors:
        width, dim = stored.shape("h1.weight", "width", "dim")
        embedding = stored.shape("temb_map.0.weight", "embedding", "embedding")[1]
        config = {"dim": dim, "width": width, "embedding": embedding}
        network = _on_meta(stored, MLPInitializer, config)
        return _filled(network, stored, _POINT_PLACES, _INITIALIZER_LAYERS)
    width = stored.shape("time_mlp.1.weight", "4 width", "width")[1]
    axes = ("channels", "channels in", "3", "3")
    resolutions = stored.indices("downs")
    if not resolutions or resolutions != list(range(len(resolutions))):
        raise stored.misfit(f"downs numbered {resolutions}", "downs.0, downs.1, …")
    widths = [stored.shape(f"downs.{i}.0.conv1.weight", *axes)[0] for i in resolutions]
    if any(w % 32 for w in (width, *widths)):
        raise stored.misfit(f"channels {[width, *widths]}", "multiples of 32, for 32-group norms")
    _check_halvings(stored, image_size, len(resolutions))
    blocks, attended = _unet_plan(stored, len(resolutions))
    config = {
        "image_channels": stored.shape("init_conv.weight", "width", "image channels", "3", "3")[1],
        "image_size": image_size,
        "width": width,
        "multipliers": stored.multipliers(widths, width),
        "blocks": blocks,
        "attention": tuple(image_size >> i for i in attended),
        "classes": stored.classes("y_mlp.0.weight"),
    }
    network = _on_meta(stored, UNetInitializer, config)
    return _filled(network, stored, _UNET_PLACES, _INITIALIZER_LAYERS)


def _unet_plan(stored: _Stored, resolutions: int) -> tuple[int, list[int]]:
    """Blocks a resolution and the resolutions with attention; refuses any other order of layers."""
    last = resolutions - 1

    def layers(part: str) -> list[str]:
        attends = [f"{part}.{i}.to_qkv.weight" in stored.tensors for i in stored.indices(part)]
        return ["attention" if a else "block" for a in attends]

    found = {f"{way}.{i}": layers(f"{way}.{i}") for way in ("downs", "ups") for i in range(last + 1)}
    blocks = found[f"downs.{last}"].count("block")
    attended = [i for i in range(resolutions) if "attention" in found[f"downs.{i}"]]
    for i in range(resolutions):
        unit = ["block", "attention"] if i in attended else ["block"]
        down = unit * blocks + ["block"] * (i < last)
        up = unit * (blocks + 1) + ["block"] * (i > 0)
        for part, expected in ((f"downs.{i}", down), (f"ups.{last - i}", up)):
            if found[part] != expected:
                raise stored.misfit(
                    f"in {part} {', '.join(found[part]) or 'nothing'}",
                    f"{', '.join(expected)}, as downs.{last} has {blocks} block(s) and attention "
                    f"is at resolutions {attended}",
                )
    return blocks, attended


def _on_meta(stored: _Stored, kind: type[nn.Module], config: dict[str, Any]) -> nn.Module:
    """The network without storage: names and shapes only."""
    try:
        with torch.device("meta"):
            return kind(**config)
    except ValueError as error:
        raise stored.misfit("shapes that fit no architecture", str(error)) from None


def _filled(
    network: nn.Module, stored: _Stored, places: dict[str, str], layers: dict[str, str]
) -> nn.Module:
    """``network`` with the file's EMA parameters and live u and v.

    Args:
        places: where modules of ours are in the file, prefix by prefix.
        layers: the file's names of the layers within.
    """
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if isinstance(network, ResNetEnergy | MLPEnergy):
        places = {**_EMBEDDING_PLACES, **places}
    names = {key: _file_name(key, f"{_parent(key)}.u" in shapes, places, layers) for key in shapes}
    expected = {name: shapes[key] for key, name in names.items()}
    unknown = [name for name in stored.tensors if name not in expected]
    missing = [name for name in expected if name not in stored.tensors]
    if unknown or missing:
        raise stored.misfit(
            f"unknown keys {_some(unknown)}",
            f"the missing keys {_some(missing)}, for {_described(network)}",
        )
    for name, value in stored.tensors.items():
        if tuple(value.shape) != expected[name]:
            raise stored.misfit(
                f"{name} of shape {tuple(value.shape)}", f"{expected[name]}, for {_described(network)}"
            )
    values = {**stored.tensors, **_averaged(stored)}
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise stored.misfit(f"{name} with NaN or infinity", "finite numbers")
    state = {
        key: values[name].detach().to(torch.float32, copy=True).contiguous()
        for key, name in names.items()
    }
    network.load_state_dict(state, assign=True)
    return network


def _averaged(stored: _Stored) -> dict[str, Tensor]:
    """The EMA parameters by name.

    Their order is that of ``parameters()``, which is that of the live state without its buffers.
    """
    names = [name for name in stored.tensors if not name.endswith((".weight_u", ".weight_v"))]
    shadow, entry = stored.shadow, "ema_state_dict"
    if not isinstance(shadow, list | tuple):
        raise stored.misfit(f"shadow_params: {type(shadow).__name__}", "a list of tensors", entry)
    if len(shadow) != len(names):
        expected = f"{len(names)}, one for each parameter"
        raise stored.misfit(f"{len(shadow)} shadow_params", expected, entry)
    for index, (name, value) in enumerate(zip(names, shadow, strict=True)):
        shape = tuple(stored.tensors[name].shape)
        if not _is_plain(value) or tuple(value.shape) != shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise stored.misfit(f"shadow_params[{index}]: {found}", f"{shape}, for {name}", entry)
    return dict(zip(names, shadow, strict=True))


def _check_pair(
    stored: _Stored, energy: nn.Module, initializer: nn.Module, image_size: int
) -> None:
    """Refuses networks that are each in order but do not belong together."""
    ours: dict[str, Any] = energy.config  # type: ignore[assignment]
    theirs: dict[str, Any] = initializer.config  # type: ignore[assignment]
    for key in ("dim", "image_channels", "classes"):
        if ours.get(key) != theirs.get(key):
            raise stored.misfit(
                f"an energy with {key}={ours.get(key)} beside an initializer with "
                f"{key}={theirs.get(key)}",
                "networks that belong together",
            )
    if isinstance(energy, ResNetEnergy):
        _check_halvings(stored, image_size, len(ours["multipliers"]))


def _check_halvings(stored: _Stored, image_size: int, resolutions: int) -> None:
    if image_size % 2 ** (resolutions - 1):
        raise stored.misfit(
            f"{resolutions} resolutions",
            f"an image_size that can be halved {resolutions - 1} times, got {image_size}: pass the "
            "size of the images it was trained on",
        )


def _file_name(key: str, spectral: bool, places: dict[str, str], layers: dict[str, str]) -> str:
    """The file's name of the tensor that we call ``key``."""
    parts = key.split(".")
    if spectral:
        parts[-1] = _SPECTRAL.get(parts[-1], parts[-1])
    name = ".".join(layers.get(part, part) for part in parts)
    for ours, theirs in places.items():
        if key.startswith(f"{ours}."):
            rest = parts[ours.count(".") + 1 :]
            name = ".".join([theirs, *(layers.get(part, part) for part in rest)])
    return name
