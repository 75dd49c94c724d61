"""The GPU baseline script: does all of it run, and does it keep what it measured."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu_baseline as script
import pytest
import torch

from cdrl_fast import ResNetEnergy
from cdrl_fast.networks.layers import SpectralConv2d, static_weights

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "gpu_baseline.py"
OPTIONAL = ("safetensors", "tyro", "tqdm", "PIL", "sklearn", "matplotlib", "torchmetrics")
CPU = torch.device("cpu")


afternoon, bench_module, chains, convolutions, hardware, revision, timing = (
    importlib.import_module(f"baseline.{name}")
    for name in (
        "afternoon", "bench", "chains", "convolutions", "hardware", "revision", "timing",
    )
)  # fmt: skip
Section = bench_module.Section


@pytest.fixture
def bench(tmp_path):
    report = bench_module.Report(tmp_path / "out.json")
    made = bench_module.Bench(CPU, report, bench_module.QUICK)
    made.section = "test"
    return made


def written(bench):
    return json.loads(bench.report.path.read_text())


def command(*arguments):
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def environment(tmp_path):
    """One thread, and none of the packages that a GPU machine may lack."""
    for name in OPTIONAL:
        (tmp_path / f"{name}.py").write_text("raise ImportError('kept out by the test')\n")
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}


def check_results(data):
    assert list(data["sections"]) == script.NAMES
    assert data["environment"]["commit"] == "abc"
    assert data["environment"]["torch"] == torch.__version__
    for name, section in data["sections"].items():
        assert (section["status"], section["failed"], section["skipped"]) == ("done", {}, []), name
        assert section["figures"]
        for figure in section["figures"].values():
            assert figure.get("seconds", 1.0) > 0
            for key in ("bytes_per_second", "flops_per_second", "share_of_matmul", "chain_seconds"):
                assert key not in figure or 0 < figure[key] < math.inf, (name, figure)


@pytest.mark.slow
def test_quick_run_measures_everything(tmp_path):
    out = tmp_path / "results" / "out.json"
    done = subprocess.run(
        command("--device", "cpu", "--quick", "--out", out, "--commit", "abc"),
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(out.read_text())
    check_results(data)
    sections = data["sections"]
    assert set(data["ceilings"]["matmul_flops_per_second"]) == {"fp16", "bf16", "tf32", "fp32"}
    # 4 shapes of the tiny network in 2 directions, and their sum; 3 precisions, 2 batches.
    assert len(sections["convolution"]["figures"]) == (4 * 2 + 1) * 3 * 2
    chain = sections["reference chain"]["figures"]["defaults batch 2"]
    assert chain["flags"] == {
        "matmul_tf32": False,
        "cudnn_tf32": True,
        "cudnn_benchmark": False,
    }
    assert "compile_seconds" in sections["compiled"]["figures"]["fp16 batch 2"]
    assert len(done.stdout.splitlines()) <= len(script.NAMES) + 40
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_quick_run_on_cuda(tmp_path):
    out = tmp_path / "out.json"
    arguments = ("--quick", "--out", out, "--commit", "abc", "--deadline", 200)
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    check_results(json.loads(out.read_text()))


def test_a_killed_run_leaves_what_it_measured(tmp_path):
    out = tmp_path / "out.json"
    run = subprocess.Popen(
        command("--device", "cpu", "--quick", "--out", out, "--commit", "abc"),
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            # Every read, at whatever moment, must find a whole file.
            data = json.loads(out.read_text()) if out.exists() else {"sections": {}}
            if data["sections"].get("copy", {}).get("figures"):
                break
            time.sleep(0.05)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert json.loads(out.read_text())["sections"]["copy"]["figures"]


def test_a_failing_section_is_recorded_and_the_next_runs(bench):
    def bad(_):
        raise ZeroDivisionError("as planned")

    def good(bench):
        bench.item("one", lambda: {"seconds": 1.0})

    todo = [Section("bad", bad, 1.0), Section("good", good, 1.0)]
    bench_module.run_sections(bench, todo, log=lambda _: None)
    sections = written(bench)["sections"]
    assert sections["bad"]["status"] == "failed"
    assert "ZeroDivisionError: as planned" in sections["bad"]["error"]
    assert sections["good"]["status"] == "done"
    assert sections["good"]["figures"] == {"one": {"seconds": 1.0}}


def test_a_failing_item_is_recorded_and_the_next_is_measured(bench):
    def section(bench):
        bench.item("raises", lambda: 1 / 0)
        bench.item("not a number", lambda: {"seconds": math.nan})
        bench.item("fine", lambda: {"seconds": 2.0})

    bench_module.run_sections(bench, [Section("mixed", section, 1.0)], log=lambda _: None)
    found = written(bench)["sections"]["mixed"]
    assert found["status"] == "partial"
    assert set(found["failed"]) == {"raises", "not a number"}
    assert found["figures"] == {"fine": {"seconds": 2.0}}


def test_figures_are_on_disk_as_soon_as_they_are_measured(bench):
    bench.item("one", lambda: {"seconds": 1.0})
    assert written(bench)["sections"]["test"]["figures"] == {"one": {"seconds": 1.0}}


def test_a_write_that_fails_leaves_the_file_as_it_was(bench):
    before = bench.report.path.read_bytes()
    bench.report.data["bad"] = math.inf
    with pytest.raises(ValueError, match="JSON compliant"):
        bench.report.save()
    assert bench.report.path.read_bytes() == before


def test_what_no_longer_fits_is_skipped_and_said(bench):
    bench.deadline = 60.0
    seen = {}

    def first(bench):
        seen["left"] = bench.left()
        bench.item("long", lambda: {"seconds": 1.0}, need=50.0)
        bench.item("short", lambda: {"seconds": 1.0}, need=0.1)

    # Of 60 s the second section's share, 165 of 330 s, is kept from the first.
    todo = [Section("first", first, 1.0), Section("second", lambda _: None, 165.0)]
    bench_module.run_sections(bench, todo, log=lambda _: None)
    found = written(bench)["sections"]["first"]
    assert seen["left"] == pytest.approx(30.0, abs=5.0)
    assert "long: needs about 50.0 s" in found["skipped"][0]
    assert (found["status"], list(found["figures"])) == ("partial", ["short"])
    bench.deadline = 0.0
    bench_module.run_sections(bench, [Section("late", first, 1.0)], log=lambda _: None)
    late = written(bench)["sections"]["late"]
    assert late["status"] == "skipped"
    assert "deadline" in late["reason"]


def test_the_compiling_process_is_stopped_and_its_figures_kept(bench, tmp_path, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text(
        "import json, os, pathlib, sys, time\n"
        "task = json.loads(sys.argv[2])\n"
        "out = pathlib.Path(task['out'])\n"
        "out.write_text(json.dumps({'bf16 batch 2': {'seconds': 0.5}}))\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(afternoon, "SCRIPT", fake)
    bench.deadline = time.monotonic() - bench.started + 6.0
    bench_module.run_sections(
        bench, [Section("compiled", afternoon.compiled, 1.0)], log=lambda _: None
    )
    found = written(bench)["sections"]["compiled"]
    assert list(found["figures"]) == ["bf16 batch 2"]
    assert found["figures"]["bf16 batch 2"]["chain_seconds"] == pytest.approx(0.5 * 9)
    assert "stopped at the deadline" in found["skipped"][0]
    assert found["status"] == "partial"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_long_run_is_extended_from_short_ones(bench, monkeypatch):
    asked = []

    def clock(run, _device, repeats):
        run()
        return [10.0 + 2.0 * asked[-1]] * repeats

    monkeypatch.setattr(chains, "wall", clock)
    figure = chains._timed(bench, "defaults", asked.append, 15)
    assert figure["seconds"] == pytest.approx(10.0 + 2.0 * 15)
    assert figure["seconds_per_added_step"] == pytest.approx(2.0)
    assert figure["how"].startswith("t(1) + 14")
    assert 15 not in asked


def test_numerics_sets_the_flags_and_puts_them_back():
    def flags():
        backends = torch.backends
        return (
            backends.cuda.matmul.allow_tf32,
            backends.cudnn.allow_tf32,
            backends.cudnn.benchmark,
        )

    before = flags()
    assert before == (False, True, False), (
        "PyTorch's defaults, as the setting of that name has them"
    )
    for name, setting in timing.SETTINGS.items():
        with timing.numerics(name):
            assert flags() == tuple(vars(setting).values())
        assert flags() == before
    with pytest.raises(KeyError), timing.numerics("tf32"):
        raise KeyError
    assert flags() == before


def test_convolution_shapes_are_those_of_the_network():
    energy = ResNetEnergy(width=8, multipliers=(1, 2, 2), blocks=2).eval()
    seen = []
    for layer in energy.modules():
        if isinstance(layer, SpectralConv2d):
            layer.register_forward_hook(
                lambda m, x, _: seen.append((m.in_channels, m.out_channels, x[0].shape[-1]))
            )
    energy(torch.randn(1, 3, 16, 16), torch.zeros(1))
    shapes = convolutions.shapes(16, width=8, multipliers=(1, 2, 2), blocks=2)
    assert sorted(shapes.elements()) == sorted(seen)


def test_the_paper_network_has_eight_products_and_22_gflop():
    shapes = convolutions.shapes(32)
    assert len(convolutions.distinct_products(shapes)) == 8
    forward = sum(n * convolutions.flops(shape, 1) for shape, n in shapes.items())
    assert 2 * forward == pytest.approx(22.4e9, rel=0.005)


def test_folding_leaves_the_energy_as_it_was():
    energy = ResNetEnergy(width=8, multipliers=(1, 2), blocks=1).eval()
    y, logsnr = torch.randn(2, 3, 8, 8), torch.tensor([1.0])
    plain = afternoon.folded(energy)
    assert not any(isinstance(layer, SpectralConv2d) for layer in plain.modules())
    assert not any(p.requires_grad for p in plain.parameters())
    with static_weights(energy):
        torch.testing.assert_close(plain(y, logsnr), energy(y, logsnr))


def test_without_a_device_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main(["--out", str(tmp_path / "out.json")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("wrong", [["--device", "cpu"], ["--sections", "copy,lunch"]])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(SystemExit) as stopped:
        script.main(wrong)
    assert stopped.value.code == 2


def test_commit_comes_from_the_argument_or_git(monkeypatch):
    assert revision.commit("given") == "given"
    monkeypatch.setattr(revision, "_git", lambda *a: {"rev-parse": "123"}.get(a[0], ""))
    assert revision.commit(None) == "123"
    monkeypatch.setattr(revision, "_git", lambda *a: {"rev-parse": "123"}.get(a[0], " M x"))
    assert revision.commit(None) == "123-modified"

    def absent(*_):
        raise FileNotFoundError("git")

    monkeypatch.setattr(revision, "_git", absent)
    assert revision.commit(None) is None
