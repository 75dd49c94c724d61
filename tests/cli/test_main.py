"""The command line: commands, files, messages and exit statuses."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import cdrl_fast
from cdrl_fast import CDRL, ChainDiverged, Sampler
from cdrl_fast.cli.main import main
from cdrl_fast.storage.locate import checkpoints_of

SMALL = [
    "train", "--energy-width", "8", "--initializer-width", "8", "--energy-blocks", "1",
    "--batch-size", "8", "--steps", "2", "--log-every", "1",
]  # fmt: skip


def weights(folder):
    return (checkpoints_of(folder)[-1] / "training.safetensors").read_bytes()


def test_training_in_two_parts_gives_the_weights_of_one_run(tmp_path, capsys, monkeypatch):
    def no_page(*arguments, **options):
        raise ImportError("pages are tested elsewhere")

    monkeypatch.setattr("cdrl_fast.report.model.model_page", no_page)
    single, parts = tmp_path / "single", tmp_path / "parts"
    options = ["--checkpoint-every", "2", "--preview-every", "2"]
    assert main([*SMALL, *options, "--out", str(single), "--iterations", "4"]) == 0
    for iterations in ("2", "4"):
        resume = ["--iterations", iterations, "--resume", "auto"]
        assert main([*SMALL, *options, "--out", str(parts), *resume]) == 0
    assert weights(single) == weights(parts)
    assert "4 iterations" in capsys.readouterr().out
    assert sorted(p.name for p in (single / "previews").iterdir()) == [
        "00000002.png",
        "00000004.png",
    ]
    recipe = json.loads((single / "recipe.json").read_text())
    assert recipe["model"]["energy_width"] == 8
    assert recipe["iterations"] == 4
    again = tmp_path / "again"
    assert main(["train", "--recipe", str(single / "recipe.json"), "--out", str(again)]) == 0
    assert weights(again) == weights(single)


def test_train_starts_from_another_model(tmp_path, capsys):
    """The recipe names the model that training starts from, also after the run is continued."""
    rate, out = ["--iterations", "1", "--energy-lr", "1e-30", "--ema-decay", "0"], ["--out"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*SMALL, *rate, "--seed", "1", "--no-conditional", *out, str(first)]) == 0
    assert main([*SMALL, *rate, "--start", str(first), *out, str(second)]) == 0
    assert "except energy.embedding.label" in capsys.readouterr().out
    stems = [CDRL.from_pretrained(run).energy.stem.weight for run in (first, second)]
    torch.testing.assert_close(*stems)
    assert main([*SMALL, *rate, "--resume", "auto", *out, str(second)]) == 0
    assert json.loads((second / "recipe.json").read_text())["start"] == str(first)
    assert main([*SMALL, "--start", "checkerboard", *out, str(tmp_path / "x")]) == 2
    assert "no layer in common" in capsys.readouterr().err


def test_train_refuses_a_folder_in_use_and_other_networks(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), "--iterations", "1"]
    assert main([*SMALL, *out]) == 0
    assert main([*SMALL, *out]) == 2
    assert "already contains a run; pass --resume auto" in capsys.readouterr().err
    assert main([*SMALL, *out, "--resume", "auto", "--levels", "3"]) == 2
    assert "the run has other data or networks" in capsys.readouterr().err
    before = (tmp_path / "run" / "recipe.json").read_bytes()
    (checkpoints_of(tmp_path / "run")[-1] / "config.json").unlink()
    assert main([*SMALL, *out, "--resume", "auto", "--batch-size", "4"]) == 2
    assert (tmp_path / "run" / "recipe.json").read_bytes() == before


def test_train_drl_and_points(tmp_path):
    out = ["--iterations", "1", "--out"]
    assert main([*SMALL, "--no-initializer", *out, str(tmp_path / "drl")]) == 0
    assert CDRL.from_pretrained(tmp_path / "drl").initializer is None
    points = ["train", "--recipe", "checkerboard-small", "--metrics-every", "1"]
    assert main([*points, "--batch-size", "8", *out, str(tmp_path / "points")]) == 0
    log = (tmp_path / "points" / "log.jsonl").read_text()
    assert "inside" in log


def test_sample_pictures_and_values(tmp_path, capsys):
    picture, values = tmp_path / "x.png", tmp_path / "x.npz"
    options = ["sample", "--n", "3", "--label", "7", "1", "--guidance", "1", "--steps", "2"]
    assert main([*options, "--out", str(picture)]) == 0
    assert Image.open(picture).width > 3 * 8
    assert main([*options, "--out", str(values), "--batch-size", "2"]) == 0
    actual = torch.from_numpy(np.load(values)["samples"])
    model = CDRL.from_pretrained("digits")
    expected = Sampler(model).sample(3, label=["7", "1", "7"], guidance=1.0, steps=2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_sample_takes_the_samplers_options(tmp_path):
    """Metropolis-corrected chains with correctors, in float64, into a file and into a folder."""
    options = ["sample", "--n", "2", "--steps", "1", "--correctors", "1", "--metropolis"]
    options += ["--precision", "fp64", "--out"]
    assert main([*options, str(tmp_path / "x.npz")]) == 0
    sampler = Sampler.from_pretrained("digits", precision="fp64")
    expected = sampler.sample(2, steps=1, correctors=1, metropolis=True)
    actual = torch.from_numpy(np.load(tmp_path / "x.npz")["samples"])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert main([*options, str(tmp_path / "shards")]) == 0
    stored = np.load(tmp_path / "shards" / "samples.npy")
    bytes_ = torch.from_numpy(stored).permute(0, 3, 1, 2)
    assert (bytes_ - 127.5 * (expected + 1)).abs().max() <= 0.5 + 1e-9


def test_evaluate(tmp_path, monkeypatch, capsys):
    out = tmp_path / "figures.json"
    options = ["--samples", "30", "--steps", "3", "--guidance", "1", "--out", str(out)]
    assert main(["evaluate", *options]) == 0
    figures = json.loads(out.read_text())
    assert figures["classifier_accuracy"] >= 0.98
    assert figures["accuracy_w1"] > 0.5
    assert figures["frechet_held_out"] < figures["frechet_noise"]
    assert "accuracy_w1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--model", "nothing"], "nothing: no such model"),
        (["sample", "--n", "1", "--label", "1", "2"], "label: expected at most 1 classes"),
        (["sample", "--label", "ten"], "unknown class 'ten'"),
        (["sample", "--steps", "0"], "steps: expected at least 1, got 0"),
        (["sample", "--steps", "few"], "or tuned, got 'few'"),
        (["tune", "--budget", "5", "--out", "{}/x"], "budget: expected at least 6, one step"),
        (
            ["train", "--recipe", "nothing", "--out", "x"],
            "neither a shipped recipe (cdrl-large, checkerboard",
        ),
        (["train", "--data", "cats", "--out", "{}/x"], "cats"),
        (["train", "--metrics-every", "5", "--held-out", "0", "--out", "{}/x"], "pass --held-out"),
        (["sample", "--out", "{}/v1.0"], "expected .png, .jpg, .npz, or a folder's name"),
        (["sample", "--device", "foo"], "device: expected auto, cpu, cuda or cuda:N, got 'foo'"),
        (["sample", "--metropolis", "--precision", "tf32"], "precision"),
        (["sample", "--device", "cuda:99"], "CUDA devices"),
        (["sample", "--model", "checkerboard", "--label", "cat"], "label"),
        (["import", "{}/none.pth.tar", "{}/x"], "none.pth.tar"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(arguments, message, tmp_path, capsys):
    status = main([argument.format(tmp_path) for argument in arguments])
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.count("\n") <= 2


def test_several_workers_cannot_write_one_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["sample", "--device", "cpu", "--out", str(tmp_path / "x.png")]) == 2
    assert "out: several workers need a folder" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cdrl-fast {cdrl_fast.__version__}\n"


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in (
        "train", "sample", "inpaint", "score", "evaluate", "tune", "import", "export", "bench",
        "about", "demo", "app",
    ):  # fmt: skip
        assert re.search(rf"^\W+{name} +[A-Z]", text, re.MULTILINE), name


def test_inpaint_a_folder_with_a_mask_picture(tmp_path, capsys):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)
    for index, pixels in enumerate(values):
        Image.fromarray(pixels).save(pictures / f"{index}.png")
    white = np.zeros((8, 8), dtype=np.uint8)
    white[2:5, 3:] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    options = ["--images", str(pictures), "--mask", str(tmp_path / "mask.png"), "--n", "2"]
    options += ["--samples", "3", "--steps", "2", "--label", "7", "1", "--out", str(out)]
    assert main(["inpaint", *options, "--precision", "fp64"]) == 0
    assert "3 completions of 2 images" in capsys.readouterr().out
    archive = np.load(out / "completions.npz")
    known = np.broadcast_to(white == 0, (2, 1, 8, 8))
    np.testing.assert_array_equal(archive["known"], known)
    assert archive["completions"].shape == (2, 3, 1, 8, 8)
    images = torch.from_numpy(archive["images"])
    torch.testing.assert_close(images[:, 0], torch.from_numpy(values[:2] / 127.5 - 1).float())
    sampler = Sampler(CDRL.from_pretrained("digits"), precision="fp64")
    expected = sampler.inpaint(
        images, torch.from_numpy(known.copy()), samples=3, steps=2, label=["7", "1"]
    )
    actual = torch.from_numpy(archive["completions"]).flatten(0, 1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
    assert Image.open(out / "overview.png").width > 4 * 8
    single = np.asarray(Image.open(out / "00001-02.png").convert("L"))
    np.testing.assert_array_equal(single[white == 0], values[1][white == 0])
    assert len(list(out.glob("0*.png"))) == 6


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("upper", "mask: upper is neither lower-half, random:P nor a picture's file"),
        ("random:75", "mask: expected random:P with P from 0 to 1, got random:75"),
        ("random:x", "mask: expected random:P"),
    ],
)
def test_inpaint_refuses_other_masks(mask, message, tmp_path, capsys):
    assert main(["inpaint", "--mask", mask, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_succeeds_without_its_page(tmp_path, capsys, monkeypatch):
    def diverged(*arguments, **options):
        raise ChainDiverged("level 3", level=3, step=1, sample=0)

    monkeypatch.setattr("cdrl_fast.report.model.model_page", diverged)
    assert main([*SMALL, "--iterations", "1", "--out", str(tmp_path / "run")]) == 0
    assert "no report.html: " in capsys.readouterr().err
    assert weights(tmp_path / "run")
