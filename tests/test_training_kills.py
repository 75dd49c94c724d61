"""The campaign of kills, in short."""

import json

import pytest
import training_kills as script


@pytest.mark.slow
def test_killed_runs_end_like_others(tmp_path, monkeypatch):
    monkeypatch.setitem(script.SIZES, "energy-width", 8)
    monkeypatch.setitem(script.SIZES, "checkpoint-every", 2)
    out = tmp_path / "report.json"
    options = ["--kills", "1", "--iterations", "30", "--span", "0.1", "--out", str(out)]
    assert script.main(options) == 0
    report = json.loads(out.read_text())
    assert report["same_weights_and_state_to_the_bit"] is True
    assert len(report["each"]) == 1
