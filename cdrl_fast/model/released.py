"""Import of the checkpoints that CDRL's authors released (``.pth.tar``).

Such a file is a pickled dictionary of the networks' states, averaged (EMA) parameters and optimiser
states. It does not contain the architecture, which is inferred from the names and shapes of the
tensors. Every tensor is then compared with the network built in this way, and a file that does not
match entirely is refused. The model gets the EMA parameters and, for spectral norm, the vectors u
and v of the network state, as in the authors' sampling.

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

# Names of this library → names in the file. The longest prefix of a module's path is replaced
# first, then each remaining part.
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
    """Load a checkpoint of the authors, with its EMA parameters.

    Widths, multipliers, blocks, attention, image channels and classes are inferred from the file.
    To draw samples as the authors' code does, pass ``denoise_scale=2`` to `Sampler.sample`.

    Args:
        path: the file, of a model of images, of images with classes, or of 2-D points.
        image_size: height and width of the images, which the file does not contain; unused for
            points.
        schedule: the noise schedule. None: the published one, ``NoiseSchedule()`` for images and
            ``NoiseSchedule(kappa=1e-3, step_scale="constant")`` for points.

    Returns:
        A `CDRL` in eval mode, on the CPU, in float32.

    Raises:
        CheckpointError: the file is missing, incomplete or of another format, its tensors match no
            architecture, or unpickling it would run code, which is refused. The message says what
            was expected and what the file contains.
        ValueError: ``image_size`` is less than 1.
        TypeError: ``image_size`` is not an integer, or ``schedule`` is not a NoiseSchedule.

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
class _StoredNetwork:
    """One network of a file.

    Attributes:
        path: the file, for messages.
        entry: "p" or "pi", the prefix of the network's dictionaries in the file.
        tensors: parameters and buffers of the network state by name, in the file's order, without
            the prefix of a parallel wrapper; spectral norm has the names of torch's hook.
        shadow: the file's entry for the list of EMA parameters, unchecked.
    """

    path: Path
    entry: str
    tensors: dict[str, Tensor]
    shadow: Any

    def mismatch(
        self, actual: str, expected: str, dictionary: str = "state_dict"
    ) -> CheckpointError:
        """Return the error that refuses the file."""
        place = f"{self.path}: {self.entry}_{dictionary}"
        return CheckpointError(f"{place}: found {actual}; expected {expected}")

    def shape(self, name: str, *axes: str) -> tuple[int, ...]:
        """Return the shape of a required tensor, which must have one dimension per axis name."""
        shape = tuple(self.tensors[name].shape) if name in self.tensors else None
        if shape is None or len(shape) != len(axes):
            actual = f"no {name}" if shape is None else f"{name} of shape {shape}"
            raise self.mismatch(actual, f"{name} of shape ({', '.join(axes)})")
        return shape

    def indices(self, prefix: str) -> list[int]:
        """Return the numbers N of all names ``prefix.N.…``, in ascending order."""
        numbered = re.compile(re.escape(prefix) + r"\.(0|[1-9][0-9]{0,5})\.")
        matches = (numbered.match(name) for name in self.tensors)
        return sorted({int(match[1]) for match in matches if match})

    def classes(self, name: str) -> int:
        """Return the number of classes of the one-hot map ``name``, 0 if there is no such map."""
        return self.shape(name, "4 width", "classes + 1")[1] - 1 if name in self.tensors else 0

    def multipliers(self, widths: Sequence[int], width: int) -> tuple[int, ...]:
        """Return ``widths`` divided by ``width``."""
        if width < 1 or any(w % width for w in widths):
            raise self.mismatch(f"channels {list(widths)}", f"multiples of the width, {width}")
        return tuple(w // width for w in widths)

    def check_halvings(self, image_size: int, resolutions: int) -> None:
        """Check that the image size can be halved down to the lowest resolution."""
        if image_size % 2 ** (resolutions - 1):
            expected = f"an image_size that can be halved {resolutions - 1} times, got {image_size}"
            raise self.mismatch(f"{resolutions} resolutions", expected)


def _read(path: Path) -> dict[str, Any]:
    """Return the file's dictionary, without running code from the file."""
    expected = "expected an authors' .pth.tar, a dictionary of tensors and plain containers"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; {expected}") from error
    except Exception as error:
        # A damaged file can raise anything. The error is not chained, because torch's message
        # advises the user to run the file's code.
        actual = f"no torch file, or a damaged one ({type(error).__name__})"
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, UnpicklingError) and code:
            actual = f"a pickle that would run {code[1]}, which is refused"
        raise CheckpointError(f"{path}: found {actual}; {expected}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found a {type(content).__name__}; {expected}")
    return content


def _stored_networks(path: Path, content: dict[str, Any]) -> tuple[_StoredNetwork, _StoredNetwork]:
    """Return energy and initializer, which the names of their tensors distinguish."""
    required = ("p_state_dict", "pi_state_dict", "p_ema_state_dict", "pi_ema_state_dict")
    missing = [name for name in required if not isinstance(content.get(name), dict)]
    if missing:
        raise CheckpointError(
            f"{path}: found the entries {_listed(content)}; expected dictionaries "
            f"{_listed(missing)} too: the architecture is inferred from the network states, and "
            "the EMA parameters are loaded"
        )
    stored = [_stored_network(path, entry, content) for entry in ("p", "pi")]
    energies = [network for network in stored if "temb_map1.bias" in network.tensors]
    initializers = [network for network in stored if network not in energies]
    if len(energies) != 1:
        raise CheckpointError(
            f"{path}: found {len(energies)} energy networks in p_state_dict and pi_state_dict; "
            "expected one, with temb_map1.bias, and one initializer"
        )
    return energies[0], initializers[0]


def _stored_network(path: Path, entry: str, content: dict[str, Any]) -> _StoredNetwork:
    state = content[f"{entry}_state_dict"]
    shadow = content[f"{entry}_ema_state_dict"].get("shadow_params")
    stored = _StoredNetwork(path, entry, {}, shadow)
    prefix = "module." if all(str(key).startswith("module.") for key in state) else ""
    for key, value in state.items():
        if not isinstance(key, str) or not _is_dense_float(value):
            actual = f"{key!r}: {type(value).__name__}"
            raise stored.mismatch(actual, "a name: a dense float tensor")
        name = key.removeprefix(prefix).replace("parametrizations.weight.original", "weight_orig")
        name = name.replace("parametrizations.weight.0._", "weight_")
        if name in stored.tensors:
            raise stored.mismatch(f"{name} in both spellings of spectral norm", "one of them")
        stored.tensors[name] = value
    return stored


def _energy(stored: _StoredNetwork, image_size: int) -> nn.Module:
    width = stored.shape("temb_map1.weight_orig", "4 width", "width")[1]
    blocks = [i for i in stored.indices("module_list") if i > 0]
    if not blocks:
        raise stored.mismatch("no module_list.1", "residual blocks")
    if "final_dense.weight" in stored.tensors:
        return _point_energy(stored, width, blocks)
    # A pool has a number in module_list but no tensors, so a skipped number starts a resolution.
    starts = [i for i in blocks if i - 1 not in blocks]
    count = starts[1] - starts[0] - 1 if len(starts) > 1 else len(blocks)
    block_numbers = {
        f"stages.{i}.{j}": 1 + i * (count + 1) + j for i in range(len(starts)) for j in range(count)
    }
    if list(block_numbers.values()) != blocks:
        expected = "as many at every resolution, with one number left out in between, for the pool"
        raise stored.mismatch(f"residual blocks numbered {blocks} in module_list", expected)
    stored.check_halvings(image_size, len(starts))
    widths = [stored.shape(f"module_list.{i}.g", "1", "channels", "1", "1")[1] for i in starts]
    stem = stored.shape("module_list.0.weight_orig", "width", "image channels", "3", "3")
    network = _build(
        stored,
        ResNetEnergy,
        image_channels=stem[1],
        width=width,
        multipliers=stored.multipliers(widths, width),
        blocks=count,
        classes=stored.classes("y_map.weight_orig"),
    )
    block_names = {block: f"module_list.{number}" for block, number in block_numbers.items()}
    return _load_parameters(network, stored, {**ENERGY, **block_names, "head": "temb_final"})


def _point_energy(stored: _StoredNetwork, width: int, blocks: list[int]) -> nn.Module:
    dim = stored.shape("module_list.0.weight_orig", "width", "dim")[1]
    widths = [stored.shape(f"module_list.{i}.g", "1", "features")[1] for i in blocks]
    multipliers = stored.multipliers(widths, width)
    network = _build(stored, MLPEnergy, dim=dim, width=width, multipliers=multipliers)
    block_names = {f"blocks.{i}": f"module_list.{i + 1}" for i in range(len(blocks))}
    return _load_parameters(network, stored, {**ENERGY, **block_names, "head": "final_dense"})


def _initializer(stored: _StoredNetwork, image_size: int) -> nn.Module:
    if "h1.weight" in stored.tensors:
        width, dim = stored.shape("h1.weight", "width", "dim")
        embedding = stored.shape("temb_map.0.weight", "embedding", "embedding")[1]
        network = _build(stored, MLPInitializer, dim=dim, width=width, embedding=embedding)
        return _load_parameters(network, stored, POINTS)
    width = stored.shape("time_mlp.1.weight", "4 width", "width")[1]
    resolutions = stored.indices("downs")
    if not resolutions or resolutions != list(range(len(resolutions))):
        raise stored.mismatch(f"downs numbered {resolutions}", "downs.0, downs.1, …")
    axes = ("channels", "channels before", "3", "3")
    widths = [stored.shape(f"downs.{i}.0.conv1.weight", *axes)[0] for i in resolutions]
    if any(w % 32 for w in (width, *widths)):
        raise stored.mismatch(f"channels {[width, *widths]}", "multiples of 32, for GroupNorm(32)")
    stored.check_halvings(image_size, len(resolutions))
    blocks, attended = _unet_layers(stored, len(resolutions))
    network = _build(
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
    return _load_parameters(network, stored, UNET)


def _unet_layers(stored: _StoredNetwork, resolutions: int) -> tuple[int, list[int]]:
    """Return the number of blocks per resolution and the resolutions that have attention.

    Raises:
        CheckpointError: the layers are not in the order of `UNetInitializer`.
    """

    def layers(part: str) -> list[str]:
        names = (f"{part}.{i}.to_qkv.weight" for i in stored.indices(part))
        return ["attention" if name in stored.tensors else "block" for name in names]

    last = resolutions - 1
    blocks = layers(f"downs.{last}").count("block")
    attended = [i for i in range(resolutions) if "attention" in layers(f"downs.{i}")]
    for i in range(resolutions):
        unit = ["block", "attention"] if i in attended else ["block"]
        down = unit * blocks + ["block"] * (i < last)
        up = unit * (blocks + 1) + ["block"] * (i > 0)
        for part, expected in ((f"downs.{i}", down), (f"ups.{last - i}", up)):
            if layers(part) != expected:
                raise stored.mismatch(
                    f"in {part} {_listed(layers(part))}",
                    f"{_listed(expected)}: blocks as in downs.{last}, attention at resolutions "
                    f"{attended}",
                )
    return blocks, attended


def _build(stored: _StoredNetwork, kind: type[nn.Module], **config: Any) -> nn.Module:
    """Return a new network, without advancing torch's global random generator."""
    try:
        with torch.random.fork_rng(devices=[]):
            return kind(**config)
    except (ValueError, RuntimeError) as error:
        raise stored.mismatch(f"shapes for {config}", f"an architecture: {error}") from None


def _load_parameters(
    network: nn.Module, stored: _StoredNetwork, names: dict[str, str]
) -> nn.Module:
    """Load the file's EMA parameters, and u and v of its state, into ``network`` and return it.

    Args:
        names: see `_file_name`.
    """
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    file_names = {key: _file_name(key, shapes, names) for key in shapes}
    expected = {name: shapes[key] for key, name in file_names.items()}
    described = f"the keys and shapes of {type(network).__name__}({network.config})"
    unknown = [name for name in stored.tensors if name not in expected]
    missing = [name for name in expected if name not in stored.tensors]
    if unknown or missing:
        actual = f"unknown keys ({_listed(unknown)}) and missing ones ({_listed(missing)})"
        raise stored.mismatch(actual, described)
    for name, tensor in stored.tensors.items():
        if tuple(tensor.shape) != expected[name]:
            actual = f"{name} of shape {tuple(tensor.shape)}"
            raise stored.mismatch(actual, f"{expected[name]}, from {described}")
    tensors = {**stored.tensors, **_ema_parameters(stored)}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise stored.mismatch(f"NaN or infinity in {name} (or its EMA)", "finite values")
    network.load_state_dict({key: tensors[name] for key, name in file_names.items()})
    return network


def _file_name(key: str, keys: Iterable[str], names: dict[str, str]) -> str:
    """Return the file's name for a tensor of this library's network.

    Args:
        key: name of the tensor in the network's state.
        keys: all names in the network's state.
        names: names in the file by this library's names, of modules and of parts of a name.
    """
    parts = key.split(".")
    if ".".join([*parts[:-1], "u"]) in keys:
        parts[-1] = SPECTRAL.get(parts[-1], parts[-1])
    lengths = (n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in names)
    length = next(lengths, 0)
    prefix = [names[".".join(parts[:length])]] if length else []
    return ".".join([*prefix, *(names.get(part, part) for part in parts[length:])])


def _ema_parameters(stored: _StoredNetwork) -> dict[str, Tensor]:
    """Return the EMA parameters by name.

    The file lists them in the order of ``parameters()``, which is the order of the network state
    without its buffers.
    """
    names = [name for name in stored.tensors if not name.endswith((".weight_u", ".weight_v"))]
    shadow, dictionary = stored.shadow, "ema_state_dict"
    if not isinstance(shadow, list | tuple) or len(shadow) != len(names):
        actual = f"{len(shadow)} tensors" if hasattr(shadow, "__len__") else type(shadow).__name__
        expected = f"a list of {len(names)}, one for each parameter"
        raise stored.mismatch(f"in shadow_params {actual}", expected, dictionary)
    for index, (name, value) in enumerate(zip(names, shadow, strict=True)):
        shape = tuple(stored.tensors[name].shape)
        dense = _is_dense_float(value)
        if not dense or tuple(value.shape) != shape:
            actual = f"of shape {tuple(value.shape)}" if dense else type(value).__name__
            raise stored.mismatch(
                f"shadow_params[{index}] {actual}", f"{shape}, for {name}", dictionary
            )
    return dict(zip(names, shadow, strict=True))


def _check_pair(stored: _StoredNetwork, energy: nn.Module, initializer: nn.Module) -> None:
    """Check that two valid networks belong to one model."""
    energy_config: dict[str, Any] = energy.config  # type: ignore[assignment]
    initializer_config: dict[str, Any] = initializer.config  # type: ignore[assignment]
    for key in ("dim", "image_channels", "classes"):
        a, b = energy_config.get(key), initializer_config.get(key)
        if a != b:
            raise stored.mismatch(
                f"an energy of {key} {a} and an initializer of {key} {b}",
                "two networks of one model",
            )


def _is_dense_float(value: Any) -> bool:
    """Return whether ``value`` is a dense floating-point tensor on the CPU, with its data."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided
    return bool(dense and value.is_floating_point() and value.device.type == "cpu")


def _listed(names: Iterable[Any]) -> str:
    """Return the first eight names and the number of names, for a message."""
    listed = [str(name) for name in names]
    more = f", … ({len(listed)} in all)" if len(listed) > 8 else ""
    return (", ".join(listed[:8]) or "none") + more
