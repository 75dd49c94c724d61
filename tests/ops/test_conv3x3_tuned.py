"""Table of the fastest convolutions: lookup, use, and calls without an entry."""

import json
from dataclasses import asdict

import pytest
import torch

from cdrl_fast.ops import conv3x3 as operation
from cdrl_fast.ops import dispatch
from cdrl_fast.ops.conv3x3 import BACKENDS, tiling, tuned
from tests.ops.test_conv3x3 import compare

KIND = (90, "float16", False, 64, 64)
SMALL = tiling.Blocks(32, 32, 32, True, 4, 3)
LARGE = tiling.Blocks(128, 64, 64, False, 8, 2)
SHAPE = {"half": True, "exact": False, "capability": 90, "aligned": True}
CPU = {"device": torch.device("cpu"), "backend": "auto"}


@pytest.fixture
def set_table(monkeypatch, tmp_path):
    """Return a function that makes the library use another table."""

    def change(fastest, kind=KIND):
        entries = [
            dict(zip(tuned.SHAPE, kind, strict=True))
            | {"pixels": pixels, "backend": backend, "blocks": asdict(blocks)}
            for pixels, (backend, blocks) in fastest.items()
        ]
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({"measured": {}, "convolutions": entries}))
        monkeypatch.setattr(tuned, "TABLE", path)

    return change


@pytest.fixture
def launched(monkeypatch, interpreter):
    """List of launches on the CPU, chosen as on a GPU: "cudnn", or the Triton kernel's blocks."""
    from cdrl_fast.ops.conv3x3 import cudnn, triton_kernel

    launches = []
    library, kernel = cudnn.conv3x3, triton_kernel.arguments

    def convolved(*rest):
        launches.append("cudnn")
        library(*rest)

    def arguments(*rest):
        launch = kernel(*rest)
        values, options = launch.values, launch.options
        block_m = values["BOX_N"] * values["BOX_H"] * values["BOX_W"]
        blocks = block_m, *(values[name] for name in ("BLOCK_N", "BLOCK_K", "TMA"))
        launches.append(tiling.Blocks(*blocks, options["num_warps"], options["num_stages"]))
        return launch

    monkeypatch.setattr(cudnn, "conv3x3", convolved)
    monkeypatch.setattr(triton_kernel, "arguments", arguments)
    monkeypatch.setitem(dispatch._AUTO, "cpu", dispatch._AUTO["cuda"])
    return launches


def test_the_nearest_number_of_pixels(set_table):
    set_table({1024: ("triton", SMALL), 65536: ("cudnn", LARGE)})
    for pixels, backend in ((1, "triton"), (8192, "triton"), (12000, "cudnn"), (10**9, "cudnn")):
        assert tuned.find(*KIND, pixels).backend == backend, pixels


@pytest.mark.parametrize("changed", range(len(KIND)))
def test_another_convolution_is_not_guessed(set_table, changed):
    set_table({1024: ("cudnn", SMALL)})
    other = [100, "bfloat16", True, 128, 128]
    assert tuned.find(*KIND[:changed], other[changed], *KIND[changed + 1 :], 1024) is None


def test_the_librarys_own_table():
    """The kernel uses every entry's blocks unchanged."""
    for (capability, precision, _, c_in, c_out), timed in tuned.read(tuned.TABLE).items():
        for pixels, fastest in timed.items():
            options = SHAPE | {"capability": capability, "half": precision.endswith("float16")}
            shape = (pixels // 16, 4, 4, c_in)
            tile = tiling.tiling(shape, c_out, **options, blocks=fastest.blocks)
            assert tile.blocks == fastest.blocks
            assert fastest.backend in BACKENDS


def test_the_table_decides_the_backend(set_table, launched):
    shape = (8, 4, 4, 64, 64)
    set_table({128: ("cudnn", SMALL), 4096: ("triton", LARGE)})
    compare("activate", shape, torch.float16, CPU)
    # An explicit backend overrides the table's, and uses its blocks.
    compare("activate", shape, torch.float16, CPU | {"backend": "triton"})
    compare("activate", (8, 16, 16, 64, 64), torch.float16, CPU)
    assert launched == ["cudnn", SMALL, LARGE]


def test_without_an_entry_the_defaults_apply(set_table, launched):
    shape = (8, 4, 4, 64, 64)
    set_table({128: ("cudnn", SMALL)})
    compare("masked", shape, torch.float16, CPU)
    assert launched == [tiling.tiling(shape[:4], 64, **SHAPE).blocks]


def test_without_cudnn_triton_is_used(set_table, launched, monkeypatch):
    set_table({128: ("cudnn", SMALL)})
    monkeypatch.setattr(operation, "reason", lambda name, device: {"cudnn": "none"}.get(name))
    compare("activate", (8, 4, 4, 64, 64), torch.float16, CPU)
    assert launched == [SMALL]


@pytest.mark.parametrize("reason", ["off 16 bytes", "few samples", "before 90"])
def test_the_defaults_replace_blocks_that_tma_cannot_load(reason):
    shape, options = (8, 4, 4, 64), dict(SHAPE)
    blocks = tiling.Blocks(128, 64, 64, True, 8, 2)
    assert tiling.tiling(shape, 64, **options, blocks=blocks).blocks == blocks
    if reason == "off 16 bytes":
        options["aligned"] = False
    elif reason == "few samples":
        shape = (5, 4, 4, 64)
    else:
        options["capability"] = 80
    default = tiling.tiling(shape, 64, **options)
    assert tiling.tiling(shape, 64, **options, blocks=blocks) == default


@pytest.mark.parametrize("block", [(256, 128), (128, 256), (64, 256), (32, 64)])
@pytest.mark.parametrize("case", ["residual of stored", "masked residual"])
def test_blocks_of_every_size(set_table, launched, case, block):
    """`make gpu-tune` times these blocks, also wider ones than the defaults."""
    blocks = tiling.Blocks(*block, 32, True, 8, 3)
    set_table({512: ("triton", blocks)}, (90, "float16", case.startswith("masked"), 32, 256))
    compare(case, (8, 8, 8, 32, 256), torch.float16, CPU | {"backend": "triton"})
    assert launched == [blocks]
