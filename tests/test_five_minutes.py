"""The walk through the five-minute start: every line in turn, stopped by the first bad one."""

import json

import five_minutes as script


def test_every_line_of_the_page_is_a_step():
    text = script.PAGE.read_text()
    found = script.steps(text, "torch==2.13.0")
    assert text.count("```python") == sum(kind == "python" for kind, _ in found)
    commands = [line for kind, line in found if kind == "bash"]
    assert commands[:3] == [
        "python -m venv .venv",
        "source .venv/bin/activate",
        "pip install torch==2.13.0",
    ]
    assert sum("folder:photos" in line and "--iterations 20" in line for line in commands) == 1


def test_steps_are_run_and_timed(tmp_path, monkeypatch, capsys):
    page, out = tmp_path / "page.md", tmp_path / "times.json"
    monkeypatch.setattr(script, "PAGE", page)
    page.write_text(
        "```bash\necho 2 > number   # a file\n```\n```python\nn = int(open('number').read())\n```\n"
        "```python\nassert n == 2\n```\n"
    )
    assert script.main(["--out", str(out)]) == 0
    steps = json.loads(out.read_text())["steps"]
    assert steps[0]["step"] == "echo 2 > number"
    assert len(steps) == 3
    page.write_text("```bash\ntrue\nfalse\ntouch later\n```\n")
    out.unlink()
    assert script.main(["--out", str(out)]) == 1
    assert not out.exists()
