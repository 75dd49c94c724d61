"""The demo and the checkerboard example, shortened: their pictures, page and figures."""

import json
import subprocess
import sys
from pathlib import Path

import own_networks
import pytest
from PIL import Image

from cdrl_fast import CDRL
from cdrl_fast.cli.demo import run_demo

ROOT = Path(__file__).parents[2]


def test_demo(tmp_path, monkeypatch, capsys):
    stale = tmp_path / "demo" / "run" / "checkpoints" / "00009999"
    stale.mkdir(parents=True)
    page = run_demo(tmp_path / "demo", iterations=200, samples=30)
    assert not stale.exists()
    html = page.read_text()
    for title in ("Digits: the shipped model", "From noise to sample", "Quality during training",
                  "Checkerboard: trained just now", "Timings"):  # fmt: skip
        assert title in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    pictures = sorted(p.name for p in (tmp_path / "demo").glob("*.png"))
    assert pictures == ["checkerboard.png", "digits-levels.png", "digits.png"]
    assert all(Image.open(tmp_path / "demo" / name).width > 100 for name in pictures)
    printed = capsys.readouterr().out
    assert str(page.resolve()) in printed
    accuracy = float(printed.split("% recognised")[0].split()[-1])
    assert accuracy > 85


def test_readme_example():
    """The README's first example runs unchanged, and its statements hold."""
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code.replace("64", "6").replace("32", "3"), names)
    tail = names["sampler"].sample(6, label="7")[3:]
    assert (names["same"] - tail).abs().max() < 1e-3
    assert names["completed"].shape == (12, 1, 8, 8)
    assert names["score"].shape == (6,)


@pytest.mark.slow
def test_checkerboard_example(tmp_path):
    script = [sys.executable, str(ROOT / "examples" / "checkerboard.py")]
    options = ["--recipe", "checkerboard-small", "--iterations", "20", "--samples", "200"]
    done = subprocess.run(
        [*script, *options, "--out", str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0.1 < figures["inside"] < 1
    assert 0.85 < figures["inside, exact samples blurred by one step's noise"] < 1
    assert len(figures["each square's share times 8"]) == 8
    assert Image.open(tmp_path / "log-density.png").width > 300


def test_own_networks_example(tmp_path, monkeypatch, capsys):
    options = ["--iterations", "3", "--samples", "100", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["own_networks.py", *options])
    own_networks.main()
    assert "% of the samples are within 0.9 of a centre" in capsys.readouterr().out
    assert Image.open(tmp_path / "samples.png").width > 300
    networks = (own_networks.Energy(), own_networks.Perceptron(2))
    assert CDRL.from_pretrained(tmp_path, networks=networks).sample_shape == (2,)
