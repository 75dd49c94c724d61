"""The environments with the oldest and the newest torch."""

import torch_versions as script


def test_what_is_installed():
    text = (script.ROOT / "pyproject.toml").read_text()
    assert script.requirements("newest", text) == ["torch"]
    oldest = script.requirements("oldest", text)
    assert oldest == ["torch==2.10.0", "triton==3.6.0", "numpy<2.4"]


def test_torch_has_no_upper_bound_and_make_takes_one_release():
    text = (script.ROOT / "pyproject.toml").read_text()
    assert '"torch>=2.10",' in text
    assert "\nTORCH ?= torch==" in (script.ROOT / "Makefile").read_text()
