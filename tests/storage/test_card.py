"""Model cards, and uploads to the Hub."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from cdrl_fast import CDRL, ModelCard, NoiseSchedule, ResNetEnergy, Sampler
from cdrl_fast.cli.export import last_metrics
from cdrl_fast.cli.main import main


@pytest.fixture(scope="module")
def model():
    energy = ResNetEnergy(1, 8, (1,), 1, classes=("a", "b"))
    return CDRL(energy, None, NoiseSchedule(levels=2, steps=2), sample_shape=(1, 4, 4)).eval()


def test_a_saved_model_has_a_card(model, tmp_path):
    text = (model.save_pretrained(tmp_path / "mine") / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: cdrl_fast\n")
    assert "license:" not in text
    count = sum(p.numel() for p in model.parameters())
    assert f"{count:,} parameters, 2 noise levels of 2 Langevin steps" in text
    assert "images (1×4×4), 2 classes, by DRL" in text
    assert "# mine" in text


def test_the_code_in_the_card_runs(model, tmp_path, monkeypatch):
    folder = model.save_pretrained(tmp_path / "mine")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code, namespace)
    assert namespace["samples"].shape == (16, 1, 4, 4)
    assert namespace["scores"].shape == (16,)


def test_a_card_contains_its_arguments(model, tmp_path):
    card = ModelCard(
        "For tests.", "mit", {"accuracy": 0.98765, "note": "x"}, {"seed": 3}, Image.new("L", (9, 7))
    )
    folder = model.save_pretrained(tmp_path / "mine", card=card, name="you/mine")
    text = (folder / "README.md").read_text()
    for part in ("license: mit", "# you/mine", "For tests.", "| accuracy | 0.9877 |", '"seed": 3'):
        assert part in text
    assert "![Samples](samples.png)" in text
    assert Image.open(folder / "samples.png").size == (9, 7)
    assert Sampler.from_pretrained(folder).model.classes == ("a", "b")


def test_an_edited_card_is_kept_unless_a_card_is_passed(model, tmp_path):
    folder = model.save_pretrained(tmp_path / "mine")
    (folder / "README.md").write_text("edited")
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "edited"
    model.save_pretrained(folder, card=ModelCard("another"))
    assert "another" in (folder / "README.md").read_text()


class Hub:
    """Replacement for huggingface_hub, which needs a network."""

    def __init__(self):
        self.repositories, self.files = {}, {}

    def create_repo(self, repository, **options):
        self.repositories[repository] = options

    def upload_folder(self, *, repo_id, folder_path):
        self.files[repo_id] = {f.name: f.read_bytes() for f in folder_path.iterdir()}
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=lambda: hub))
    return hub


def test_push_uploads_the_saved_files(model, hub, tmp_path):
    assert model.push_to_hub("you/mine", private=True) == "https://hub/you/mine/commit/1"
    assert hub.repositories == {"you/mine": {"private": True, "exist_ok": True}}
    folder = model.save_pretrained(tmp_path / "mine", name="you/mine")
    assert hub.files["you/mine"] == {f.name: f.read_bytes() for f in folder.iterdir()}


def test_push_without_the_package_names_the_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "cdrl-fast\[hub\]"'):
        model.push_to_hub("you/mine")


def test_export_of_a_run_has_its_recipe_and_metrics(tmp_path, hub, capsys):
    run, out = tmp_path / "run", tmp_path / "mine"
    small = ["--energy-width", "8", "--initializer-width", "8", "--energy-blocks", "1"]
    small += ["--batch-size", "8", "--steps", "1", "--iterations", "1", "--out", str(run)]
    assert main(["train", *small]) == 0
    with (run / "log.jsonl").open("a") as log:
        log.write('{"iteration": 1, "metrics": {"accuracy": 0.5}}\n{"iteration": 2, "metr')
    arguments = ["export", "--model", str(run), "--license", "mit", "--about", "Tiny."]
    assert main([*arguments, "--out", str(out), "--push", "you/tiny"]) == 0
    for text in ((out / "README.md").read_text(), hub.files["you/tiny"]["README.md"].decode()):
        for part in ("license: mit", "Tiny.", '"energy_width": 8', "| accuracy | 0.5 |"):
            assert part in text
    assert CDRL.from_pretrained(out).num_classes == 10
    assert main(arguments) == 2
    assert "expected --out FOLDER, --push OWNER/NAME or both" in capsys.readouterr().err


def test_metrics_of_a_log(tmp_path):
    assert last_metrics(tmp_path / "none") == {}
    log = tmp_path / "log.jsonl"
    log.write_text('{"iteration": 1}\n')
    assert last_metrics(log) == {}
