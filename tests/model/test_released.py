"""Checkpoints of the authors: loaded networks compute the same, other files are refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, spectral_norm

from cdrl_fast import CDRL, NoiseSchedule, Sampler, normal
from cdrl_fast.errors import CheckpointError
from cdrl_fast.model.released import load_released_checkpoint
from cdrl_fast.networks import MLPEnergy, MLPInitializer
from tests.model.released_networks import (
    Case,
    Energy,
    Initializer,
    Pair,
    checkpoint,
    evaluated,
    inputs,
    layout,
    plain_chain,
)

POINTS = NoiseSchedule(kappa=1e-3, step_scale="constant")
PARAMETRIZED = parametrizations.spectral_norm

SMALL = Case(layout(8, (1, 2), 2), layout(32, (1, 1), 1, attention=(4,)))
CONDITIONAL = Case(
    layout(8, (1, 2, 2), 1), layout(32, (1, 1, 1), 2, attention=(8, 4)), channels=1, classes=10
)
TOY = Case({"width": 16, "multipliers": (1, 2, 2)}, {"width": 64, "emb": 16}, size=None, prefix="")
CASES = {
    "image": SMALL,
    "conditional": CONDITIONAL,
    "toy": TOY,
    "toy as published": Case(size=None, prefix=""),
    "toy, wrapped, parametrized": Case(TOY.energy, size=None, spectral=PARAMETRIZED),
    "no prefix, no attention, growing U-Net": Case(
        layout(6, (1, 1), 1), layout(32, (1, 2, 2), 1, attention=()), prefix=""
    ),
    "parametrized, conditional, legacy file": Case(
        layout(8, (1, 1), 2),
        layout(64, (1, 1), 2, attention=(8,)),
        classes=2,
        spectral=PARAMETRIZED,
        zipped=False,
    ),
    "one resolution, attention in the middle alone": Case(
        layout(8, (1,), 3), layout(32, (1,), 1, attention=()), channels=1
    ),
    "published layout, narrow": Case(
        layout(16, (1, 2, 2, 2), 8), layout(32, (1, 1, 1), 3, attention=(16, 8)), size=32
    ),
}


def load(case: Case, content: dict[str, Any], path: Path, **options: Any) -> CDRL:
    torch.save(content, path, _use_new_zipfile_serialization=case.zipped)
    if case.size is not None:
        options.setdefault("image_size", case.size)
    return load_released_checkpoint(path, **options)


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    """Assert that a - b is small against the largest entry of b, which must not vanish."""
    scale = b.abs().max().item()
    assert scale > 1e-3
    torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance * scale)


@pytest.mark.parametrize("name", CASES)
def test_loaded_networks_compute_what_the_authors_do(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    content, (energy, initializer) = checkpoint(case)
    state = torch.get_rng_state()
    model = load(case, content, tmp_path / "checkpoint.pth.tar")
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert model.sample_shape == case.shape
    assert model.num_classes == case.classes
    assert model.schedule == (POINTS if case.size is None else NoiseSchedule())
    y, logsnr, label = inputs(case)
    arguments = (y, logsnr, label)
    close(evaluated(model.energy, *arguments)[0], evaluated(energy, *arguments)[0], 1e-5)
    for network in (model, energy, initializer):
        network.double()
    arguments = (y.double(), logsnr.double(), label)
    actual, expected = evaluated(model.energy, *arguments), evaluated(energy, *arguments)
    close(actual[0], expected[0], 1e-9)
    close(actual[1], expected[1], 1e-9)
    assert model.initializer is not None
    with torch.no_grad():
        residuals = [net(*arguments) - arguments[0] for net in (model.initializer, initializer)]
    close(residuals[0], residuals[1], 1e-9)
    if label is not None:
        one, no_label = (y[:1].double(), logsnr[:1].double()), torch.zeros(1, dtype=torch.long)
        close(model.energy(*one), energy(*one, no_label), 1e-9)
        assert not torch.allclose(energy(*one, no_label), energy(*one, no_label + 1), rtol=1e-3)


def test_loaded_models_survive_save_pretrained(tmp_path: Path) -> None:
    content, _ = checkpoint(CONDITIONAL)
    model = load(CONDITIONAL, content, tmp_path / "a.pth.tar")
    again = CDRL.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert again.to_config() == model.to_config()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_live_parameters_are_not_used(tmp_path: Path) -> None:
    content, _ = checkpoint(SMALL)
    first = load(SMALL, content, tmp_path / "a.pth.tar").state_dict()
    for entry in ("p_state_dict", "pi_state_dict"):
        for key, value in content[entry].items():
            if not key.endswith(("_u", "_v")):
                value.zero_()
    second = load(SMALL, content, tmp_path / "b.pth.tar").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ema_parameters_come_in_the_order_of_the_live_ones(tmp_path: Path) -> None:
    content, _ = checkpoint(SMALL)
    first = load(SMALL, content, tmp_path / "a.pth.tar").state_dict()
    for entry in ("p", "pi"):
        content[f"{entry}_state_dict"] = dict(reversed(content[f"{entry}_state_dict"].items()))
        content[f"{entry}_ema_state_dict"]["shadow_params"].reverse()
    second = load(SMALL, content, tmp_path / "b.pth.tar").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_explicit_schedule_is_used(tmp_path: Path) -> None:
    schedule = NoiseSchedule(levels=4, steps=7)
    model = load(SMALL, checkpoint(SMALL)[0], tmp_path / "a.pth.tar", schedule=schedule)
    assert model.schedule == schedule


def test_energy_and_initializer_are_recognised_by_tensor_names(tmp_path: Path) -> None:
    content, (energy, _) = checkpoint(SMALL)
    swapped = {
        key.replace("pi_", "q_").replace("p_", "pi_").replace("q_", "p_"): value
        for key, value in content.items()
    }
    assert swapped["pi_state_dict"] is content["p_state_dict"]
    model = load(SMALL, swapped, tmp_path / "a.pth.tar")
    y, logsnr, _ = inputs(SMALL)
    close(model.energy(y, logsnr), energy(y, logsnr), 1e-5)


def test_published_sizes_are_inferred(tmp_path: Path) -> None:
    with torch.device("meta"):
        networks: Pair = Energy(spectral_norm), Initializer()
    content: dict[str, Any] = {}

    def zeros(tensor: Tensor) -> Tensor:
        return torch.zeros(1).expand(tensor.shape)  # the file stores one number for any shape

    for entry, network in zip(("p", "pi"), networks, strict=True):
        live = {f"module.{key}": zeros(value) for key, value in network.state_dict().items()}
        shadow = [zeros(parameter) for parameter in network.parameters()]
        content[f"{entry}_state_dict"] = live
        content[f"{entry}_ema_state_dict"] = {"shadow_params": shadow}
    model = load(Case(size=32), content, tmp_path / "a.pth.tar")
    energy = {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 8}
    unet = {"width": 64, "multipliers": (1, 1, 1), "blocks": 3, "attention": (16, 8)}
    both = {"image_channels": 3, "classes": 0}
    assert model.energy.config == {**energy, **both}
    assert model.initializer.config == {**unet, **both, "image_size": 32, "dropout": 0.1}
    counts = [sum(p.numel() for p in net.parameters()) for net in model.children()]
    assert counts[1] == 3_769_795
    assert round(counts[0] / 1e6, 2) == 34.83


def test_published_sizes_of_the_toy_are_inferred(tmp_path: Path) -> None:
    case = CASES["toy as published"]
    model = load(case, checkpoint(case)[0], tmp_path / "a.pth.tar")
    assert model.energy.config == MLPEnergy().config
    assert model.initializer.config == MLPInitializer().config


@pytest.mark.parametrize(("name", "scale"), [("image", 1.0), ("image", 2.0), ("toy", 1.0)])
def test_samples_follow_the_authors_networks(name: str, scale: float, tmp_path: Path) -> None:
    case = CASES[name]
    content, networks = checkpoint(case)
    model = load(case, content, tmp_path / "a.pth.tar")
    sampler = Sampler(model, precision="fp64")
    samples = sampler.sample(2, seed=0, steps=1, denoise_scale=scale)

    def draw(index: int) -> Tensor:
        return normal((2, *case.shape), seed=0, draw=index, dtype=torch.float64)

    expected = plain_chain(networks, case.size is None, scale, draw)
    if case.size is not None:
        inside = expected.abs() < 1
        assert inside.double().mean() > 0.05  # otherwise the clamp would hide differences
        other = plain_chain(networks, False, 3.0 - scale, draw)
        assert (expected - other)[inside].abs().max() > 1e-3
    close(samples, expected, 1e-9)


Edit = Callable[[dict[str, Any]], object]


def put(name: str, value: Any, entry: str = "p") -> Edit:
    """Return an edit that sets one tensor of a state."""
    return lambda content: content[f"{entry}_state_dict"].update({f"module.{name}": value})


def drop(start: str, entry: str = "p") -> Edit:
    """Return an edit that drops the tensors of a state whose names begin with ``start``."""

    def edit(content: dict[str, Any]) -> None:
        state = content[f"{entry}_state_dict"]
        for name in [name for name in state if name.startswith(f"module.{start}")]:
            del state[name]

    return edit


def rename(*pairs: tuple[str, str], entry: str = "p") -> Edit:
    """Return an edit that renames tensors of a state without changing their order."""

    def edit(content: dict[str, Any]) -> None:
        for old, new in pairs:
            state = content[f"{entry}_state_dict"]
            renamed = {name.replace(old, new): value for name, value in state.items()}
            content[f"{entry}_state_dict"] = renamed

    return edit


def shadow(index: int, value: Any) -> Edit:
    """Return an edit that sets one EMA parameter of the energy."""
    return lambda content: content["p_ema_state_dict"]["shadow_params"].__setitem__(index, value)


def transplant(case: Case, entry: str) -> Edit:
    """Return an edit that copies one network, with its EMA, from the file of another case."""
    names = (f"{entry}_state_dict", f"{entry}_ema_state_dict")
    return lambda content: content.update({name: checkpoint(case)[0][name] for name in names})


# In SMALL, module_list is stem, block, block, pool, block, block; downs.0 block, down; downs.1
# block, attention; ups.0 block, attention, block, attention, up; ups.1 block, block.
SWAP = (("ups.0.0.", "ups.0.x."), ("ups.0.1.", "ups.0.0."), ("ups.0.x.", "ups.0.1."))
REFUSALS: list[tuple[Edit, str]] = [
    (lambda c: c.pop("p_ema_state_dict"), "dictionaries p_ema_state_dict too: .*the EMA param"),
    (lambda c: c.pop("pi_state_dict"), "the entries p_state_dict.*; .* pi_state_dict too"),
    (lambda c: c.update(p_state_dict=[1]), "expected dictionaries p_state_dict too"),
    (lambda c: c.update(pi_state_dict=c["p_state_dict"]), "found 2 energy networks"),
    (drop("temb_map1"), "found 0 energy networks"),
    (lambda c: c["p_ema_state_dict"].pop("shadow_params"), "shadow_params NoneType; .* of 37"),
    (lambda c: c["p_ema_state_dict"]["shadow_params"].pop(), "p_ema_.* 36 tensors; .* of 37"),
    (lambda c: c["pi_ema_state_dict"]["shadow_params"].append(1), "pi_ema_state_dict: found in"),
    (shadow(6, torch.ones(1, 9, 1, 1)), r"\[6\] of shape \(1, 9, 1, 1\); .*, for module_list.1.g$"),
    (shadow(0, "x"), r"shadow_params\[0\] str; expected \(32,\), for temb_map1.bias"),
    (shadow(3, torch.full((32, 32), torch.nan)), "NaN or infinity in temb_map2.weight_orig"),
    (put("temb_map1.weight_u", torch.full((32,), torch.inf)), "infinity in temb_map1.weight_u"),
    (put("extra", torch.ones(2)), r"unknown keys \(extra\) and missing ones \(none\)"),
    (drop("module_list.5.conv2.bias"), r"\(none\) and missing ones \(module_list.5.conv2.bias\)"),
    (drop("temb_map1.weight_orig"), r"no temb_map1.weight_orig; expected .* \(4 width, width\)"),
    (drop("final_conv", "pi"), r"pi_state_dict: .*ones \(final_conv.weight, final_conv.bias\)"),
    (rename(("module.temb_final", "temb_final")), "found 0 energy networks"),
    (lambda c: c["p_state_dict"].update({3: 1.0}), "found 3: float; expected a name"),
    (put("module_list.1.g", torch.ones(1, 8, 1, 1).long()), "1.g': Tensor; .* dense float tensor"),
    (put("module_list.2.conv1.bias", torch.ones(9)), r"shape \(9,\); expected \(8,\), from"),
    (put("module_list.0.weight_orig", torch.ones(8, 3)), r"\(8, 3\); .* image channels, 3, 3\)"),
    (put("module_list.4.g", torch.ones(1, 12, 1, 1)), r"\[8, 12\]; .* multiples of the width, 8"),
    (put("temb_map1.weight_orig", torch.ones(4, 1)), "expected an architecture: .* even width"),
    (put("temb_map1.parametrizations.weight.original", torch.ones(2)), "map1.* both spellings"),
    (drop("module_list.5."), r"blocks numbered \[1, 2, 4\] in module_list; expected as many at"),
    (rename(("list.5.", "list.6."), ("list.4.", "list.5.")), r"numbered \[1, 2, 5, 6\] .* pool"),
    (rename(("module_list.", "list.")), "no module_list.1; expected residual blocks"),
    (drop("ups.0.3.", "pi"), "in ups.0 block, attention, block, block; .* attention, block, att"),
    (rename(*SWAP, entry="pi"), "in ups.0 attention, block, block, .*; expected block, attention"),
    (rename(("ups.1.1.", "ups.1.2."), entry="pi"), r"keys \(ups.1.2.norm1.* ones \(ups.1.1.norm1"),
    (rename(("downs.1.", "downs.2."), entry="pi"), r"downs numbered \[0, 2\]; expected downs.0"),
    (put("downs.0.0.conv1.weight", torch.ones(48, 32, 3, 3), "pi"), "48, 32.; .* of 32, for Gr"),
    (transplant(replace(SMALL, classes=2), "p"), "energy of classes 2 and an .* of classes 0"),
    (transplant(replace(SMALL, channels=1), "pi"), "image_channels 3 and .* image_channels 1"),
    (transplant(TOY, "pi"), "an energy of dim None and an initializer of dim 2"),
]


@pytest.mark.parametrize(("edit", "message"), REFUSALS, ids=[m[:40] for _, m in REFUSALS])
def test_files_that_do_not_fit_are_refused(edit: Edit, message: str, tmp_path: Path) -> None:
    content, _ = checkpoint(SMALL)
    path = tmp_path / "broken.pth.tar"
    edit(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load(SMALL, content, path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (SMALL, "p_state_dict: found 2 resolutions; .* halved 1 times, got 7"),
        (replace(SMALL, energy=layout(8, (1,), 2)), "pi_state_dict: found 2 resolutions; .* got 7"),
    ],
)
def test_an_image_size_that_cannot_be_halved(case: Case, message: str, tmp_path: Path) -> None:
    content, _ = checkpoint(case)
    with pytest.raises(CheckpointError, match=message):
        load(case, content, tmp_path / "a.pth.tar", image_size=7)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"image_size": 0}, ValueError),
        ({"image_size": 8.0}, TypeError),
        ({"image_size": True}, TypeError),
        ({"schedule": 15}, TypeError),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], tmp_path: Path) -> None:
    content, _ = checkpoint(SMALL)
    with pytest.raises(error, match=f"^{next(iter(options))}: expected"):
        load(SMALL, content, tmp_path / "a.pth.tar", **options)


UNREADABLE = {
    "empty": b"",
    "text": b"hello world, this is text" * 10,
    "noise": bytes(range(256)) * 4,
    "empty archive": b"PK\x05\x06" + bytes(18),
    "plain pickle": pickle.dumps({"p_state_dict": {}}, protocol=2),
}


@pytest.mark.parametrize("name", [*UNREADABLE, "truncated"])
def test_files_that_torch_cannot_read_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth.tar"
    torch.save(checkpoint(SMALL)[0], path)
    path.write_bytes(UNREADABLE.get(name, path.read_bytes()[:-5000]))
    with pytest.raises(CheckpointError, match=r"a\.pth\.tar: found no torch file, or a damaged"):
        load_released_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth.tar"
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"a\.pth\.tar: found a list; expected .* dictionary"):
        load_released_checkpoint(path)
    for unreadable in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match=f"{unreadable}: cannot be read"):
            load_released_checkpoint(unreadable)


class Payload:
    """Object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_is_refused_and_its_code_does_not_run(
    zipped: bool, tmp_path: Path
) -> None:
    content, _ = checkpoint(SMALL)
    folder, path = tmp_path / "created", tmp_path / "a.pth.tar"
    content["p_optimizer"] = Payload(folder)
    with pytest.raises(CheckpointError, match=r"found a pickle that would run \w+\.mkdir, w"):
        load(replace(SMALL, zipped=zipped), content, path)
    assert not folder.exists()
    torch.load(path, weights_only=False)
    assert folder.exists()
