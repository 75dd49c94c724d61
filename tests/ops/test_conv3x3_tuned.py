"""The table of the fastest rooms and blocks: read, looked up, followed, and done without."""

import json

import pytest
import torch

from cdrl_fast.ops import rooms
from cdrl_fast.ops.conv3x3 import conv3x3, tiling, winners
from cdrl_fast.ops.conv3x3.winners import Kind, Table, Winner
from tests.ops.test_conv3x3 import compare

KIND = Kind(90, "float16", False, 64, 64)
SMALL = tiling.Blocks(32, 32, 32, True, 4, 3)
LARGE = tiling.Blocks(128, 64, 64, False, 8, 2)
SHAPE = {"half": True, "exact": False, "capability": 90, "aligned": True}


def table(entries, kind=KIND):
    return Table({kind: {winners.exponent(p): w for p, w in entries.items()}}, {})


@pytest.fixture
def use(monkeypatch):
    """Makes the library follow another table."""

    def change(made):
        monkeypatch.setattr(winners, "committed", lambda: made)

    return change


@pytest.fixture
def launched(monkeypatch, interpreter):
    """What ran: "cudnn", or the tiling of Triton's kernel."""
    from cdrl_fast.ops.conv3x3 import cudnn, triton

    seen = []
    library, kernel = cudnn.conv3x3, triton.arguments

    def convolved(*rest):
        seen.append("cudnn")
        library(*rest)

    def arguments(*rest):
        launch = kernel(*rest)
        boxes = (launch.values[f"BOX_{side}"] for side in "NHW")
        block_m = torch.Size(boxes).numel()
        values, options = launch.values, launch.options
        seen.append(
            tiling.Blocks(
                block_m, values["BLOCK_N"], values["BLOCK_K"], values["TMA"],
                options["num_warps"], options["num_stages"],
            )
        )  # fmt: skip
        return launch

    monkeypatch.setattr(cudnn, "conv3x3", convolved)
    monkeypatch.setattr(triton, "arguments", arguments)
    return seen


@pytest.fixture
def as_a_gpu(monkeypatch):
    """ "auto" takes Triton's room on the CPU, as it does on a GPU."""
    monkeypatch.setitem(rooms._AUTO, "cpu", rooms._AUTO["cuda"])


def test_the_nearest_number_of_pixels():
    near, far = Winner("triton", SMALL), Winner("cudnn", LARGE)
    found = table({1024: near, 65536: far})
    for pixels, expected in ((1, near), (1024, near), (8192, near), (12000, far), (10**9, far)):
        assert found.find(KIND, pixels) is expected, pixels


@pytest.mark.parametrize(
    "other",
    [
        Kind(100, "float16", False, 64, 64),
        Kind(90, "bfloat16", False, 64, 64),
        Kind(90, "float16", True, 64, 64),
        Kind(90, "float16", False, 128, 64),
        Kind(90, "float16", False, 64, 128),
    ],
)
def test_what_was_not_measured_is_not_guessed(other):
    assert table({1024: Winner("cudnn", SMALL)}).find(other, 1024) is None


def test_it_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "table.json"
    made = table({1024: Winner("triton", SMALL), 65536: Winner("cudnn", LARGE)})
    older = Table({KIND: {10: Winner("cudnn", LARGE), 12: Winner("cudnn", SMALL)}}, {"80": {}})
    made = Table(made.winners, {"90": {"device": "some GPU"}})
    older.merged(made).write(path)
    back = Table.read(path)
    assert back.winners == {KIND: {**made.winners[KIND], 12: Winner("cudnn", SMALL)}}
    assert back.measured == {"80": {}, "90": {"device": "some GPU"}}
    lines = [line for line in path.read_text().splitlines() if '"room"' in line]
    assert len(lines) == 3
    Table({}, {}).write(path)
    assert Table.read(path) == Table({}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"room": "reference"}, "room must be one of"),
        ({"pixels": 1000}, "pixels must be a power of two"),
        ({"c_out": 48}, "must divide the channels"),
        ({"blocks": {"block_m": 96}}, "must be powers of two"),
        ({"blocks": {"block_n": 16}}, "words of 32"),
        ({"blocks": {"sides": 3}}, "sides"),
        ({"more": 1}, "unknown .*more"),
        ({"precision": None}, "precision"),
    ],
)
def test_a_bad_entry_is_named(tmp_path, change, message):
    path = tmp_path / "table.json"
    table({1024: Winner("triton", SMALL)}).write(path)
    data = json.loads(path.read_text())
    (entry,) = data["winners"]
    entry["blocks"] |= change.pop("blocks", {})
    entry |= change
    if entry["precision"] is None:
        del entry["precision"]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"(?s)table.json.*{message}"):
        Table.read(path)


def test_another_format_is_refused(tmp_path):
    path = tmp_path / "table.json"
    path.write_text('{"format": 2, "winners": []}')
    with pytest.raises(ValueError, match="expected format 1, got 2"):
        Table.read(path)


def test_the_librarys_own_table():
    """It can be read, and its blocks are those that the kernel then takes."""
    if not winners.committed().winners:
        pytest.skip("nothing has been measured yet")
    for kind, entries in winners.committed().winners.items():
        for power, winner in entries.items():
            half = kind.precision in ("float16", "bfloat16")
            options = SHAPE | {"half": half, "exact": kind.precision == "ieee"}
            options["capability"] = kind.capability
            side = 2 ** (power // 3)
            shape = (2**power // side**2, side, side, kind.c_in)
            made = tiling.tiling(shape, kind.c_out, **options, blocks=winner.blocks)
            assert made.blocks == winner.blocks


def test_a_winner_decides_the_room(use, launched, as_a_gpu):
    room = {"device": torch.device("cpu"), "backend": "auto"}
    shape = (8, 4, 4, 64, 64)
    use(table({128: Winner("cudnn", SMALL), 4096: Winner("triton", LARGE)}))
    compare("activate", shape, torch.float16, room)
    # An explicit room stays, with the best blocks that are known for it.
    compare("activate", shape, torch.float16, room | {"backend": "triton"})
    compare("activate", (8, 16, 16, 64, 64), torch.float16, room)
    assert launched == ["cudnn", SMALL, LARGE]


def test_without_an_entry_the_defaults_hold(use, launched, as_a_gpu):
    room = {"device": torch.device("cpu"), "backend": "auto"}
    shape = (8, 4, 4, 64, 64)
    default = tiling.tiling(shape[:4], 64, **SHAPE).blocks
    for made in (Table({}, {}), table({128: Winner("cudnn", SMALL)}, Kind(80, *KIND_REST))):
        use(made)
        compare("activate", shape, torch.float16, room)
    use(table({128: Winner("cudnn", SMALL)}))
    compare("masked", shape, torch.float16, room)
    assert launched == [default] * 3


KIND_REST = ("float16", False, 64, 64)


def test_without_the_winning_room_triton_goes_on(use, launched, as_a_gpu, monkeypatch):
    from cdrl_fast.ops import conv3x3 as operation

    use(table({128: Winner("cudnn", SMALL)}))
    why = {"cudnn": "no cuDNN"}
    monkeypatch.setattr(operation, "reason", lambda room, device: why.get(room))
    room = {"device": torch.device("cpu"), "backend": "auto"}
    compare("activate", (8, 4, 4, 64, 64), torch.float16, room)
    assert launched == [SMALL]


def test_the_reference_needs_no_table(use):
    use(None)
    x, weight = torch.zeros(8, 4, 4, 64), torch.zeros(9, 64, 64)
    assert not conv3x3(x, weight, backend="reference").any()


@pytest.mark.parametrize("how", ["off 16 bytes", "few samples", "before 90"])
def test_blocks_that_tma_cannot_fill_give_way(how):
    """To the default's, all of which were chosen to go together."""
    shape, options = (8, 4, 4, 64), dict(SHAPE)
    wanted = tiling.Blocks(128, 64, 64, True, 8, 2)
    assert tiling.tiling(shape, 64, **options, blocks=wanted).blocks == wanted
    if how == "off 16 bytes":
        options["aligned"] = False
    elif how == "few samples":
        shape = (5, 4, 4, 64)
    else:
        options["capability"] = 80
    default = tiling.tiling(shape, 64, **options)
    assert tiling.tiling(shape, 64, **options, blocks=wanted) == default


@pytest.mark.parametrize("block", [(256, 128), (128, 256), (64, 256), (32, 64)])
@pytest.mark.parametrize("how", ["residual of stored", "masked residual"])
def test_blocks_of_every_size(use, launched, how, block):
    """Those that are measured, wider ones than the defaults among them."""
    blocks = tiling.Blocks(*block, 32, True, 8, 3)
    transposed = how.startswith("masked")
    use(table({512: Winner("triton", blocks)}, Kind(90, "float16", transposed, 32, 256)))
    room = {"device": torch.device("cpu"), "backend": "triton"}
    compare(how, (8, 8, 8, 32, 256), torch.float16, room)
    assert launched == [blocks]
