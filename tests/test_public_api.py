"""The names a user types, their signatures, and what importing costs."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cdrl_fast
from cdrl_fast import data, metrics, ops, reference, report

NAMES = {
    "About", "CDRL", "BackendUnavailable", "CDRLError", "ChainDiverged", "CheckpointError",
    "DataError", "Precision", "TrainingDiverged",
    "Density", "conditional", "guided", "mixture", "negated", "product", "tempered",
    "MLPEnergy", "MLPInitializer", "ModelCard", "NoiseSchedule", "ResNetEnergy", "Sampler",
    "StepPlan", "Trace",
    "TrainConfig", "Trainer", "UNetInitializer", "about", "langevin",
    "load_released_checkpoint", "normal", "ops", "reference", "sample_to_folder",
    "tune_steps",
}  # fmt: skip

SIGNATURES = {
    "NoiseSchedule": "(levels, steps, logsnr_max, logsnr_min, kappa, step_scale)",
    "ResNetEnergy": "(image_channels, width, multipliers, blocks, classes)",
    "UNetInitializer": "(image_channels, image_size, width, multipliers, blocks, attention, "
    "dropout, classes)",
    "MLPEnergy": "(dim, width, multipliers, classes)",
    "MLPInitializer": "(dim, width, embedding, classes)",
    "CDRL": "(energy, initializer, schedule, *, sample_shape)",
    "CDRL.save_pretrained": "(self, folder, *, card, name)",
    "CDRL.push_to_hub": "(self, repository, *, card, private)",
    "Sampler.from_pretrained": "(name, options)",
    "CDRL.from_pretrained": "(name, networks)",
    "load_released_checkpoint": "(path, *, image_size, schedule)",
    "Sampler": "(model, *, device, precision, backend, graph, compile)",
    "Sampler.sample": "(self, n, *, seed, steps, label, guidance, first_sample, batch_size, "
    "denoise_scale, correctors, metropolis, progress, trace)",
    "Sampler.log_density": "(self, images, *, label, levels, statistics, seed, first_sample, "
    "batch_size)",
    "Sampler.level_statistics": "(self, images, *, label, levels, seed, batch_size)",
    "sample_to_folder": "(sampler, n, folder, *, seed, steps, label, guidance, batch_size, "
    "denoise_scale, correctors, metropolis, worker, workers, progress)",
    "Sampler.inpaint": "(self, images, known, *, seed, steps, label, guidance, samples, "
    "first_sample, batch_size, noise, passes, candidates, denoise_scale, correctors, progress)",
    "normal": "(shape, *, seed, draw, first_sample, device, dtype, backend)",
    "conditional": "(model, label)",
    "product": "(factors, *, base)",
    "guided": "(conditional, unconditional, weight)",
    "negated": "(base, a, weight)",
    "mixture": "(components, *, weights)",
    "tempered": "(a, temperature)",
    "about": "()",
    "langevin": "(log_density, x, *, steps, step_size, seed, first_sample, first_step, metropolis, "
    "trace, backend, "
    "compile)",
    "ops.rng_state": "(*, seed, draw, first_sample, device)",
    "tune_steps": "(model, data, *, budget, samples, guidance, seed, max_seconds, extractor, "
    "progress)",
    "Trainer": "(model, data, config)",
    "Trainer.fit": "(self, iterations, *, folder, progress, preview, evaluate)",
    "Trainer.save": "(self, path)",
    "Trainer.resume": "(path, data, *, config, device, networks)",
    "reference.sample": "(model, n, *, seed, steps, label, guidance, first_sample, denoise_scale, "
    "dtype, noise)",
    "ops.langevin_step": "(x, grad, anchor, *, drift, pull, noise_std, rng, rescale, first_bad, "
    "out, backend)",
}


def test_names():
    assert set(cdrl_fast.__all__) == NAMES
    assert all(getattr(cdrl_fast, name).__doc__ for name in NAMES)
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = cdrl_fast.nothing_of_that_name


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    value = cdrl_fast
    for part in name.split("."):
        value = getattr(value, part)
    shown, keyword_only = [], False
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            shown.append("*")
        shown.append(parameter.name)
    assert f"({', '.join(shown)})" == SIGNATURES[name]


def test_import_needs_torch_and_numpy_alone():
    """With every other dependency hidden the package imports, builds a model and samples."""
    code = """
import sys
hidden = ("safetensors", "PIL", "tqdm", "tyro", "matplotlib", "sklearn", "scipy", "torchmetrics",
          "triton", "huggingface_hub", "datasets")
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ImportError(name)
sys.meta_path.insert(0, Hide())
import cdrl_fast
from cdrl_fast import reference
model = cdrl_fast.CDRL(
    cdrl_fast.MLPEnergy(2, 8, (1,)), cdrl_fast.MLPInitializer(2, 64, 8), cdrl_fast.NoiseSchedule()
)
print(tuple(cdrl_fast.Sampler(model).sample(3, steps=1).shape), cdrl_fast.Trainer.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "(3, 2) Trainer", done.stderr


# Their examples stand with what makes or takes them.
WITHOUT_EXAMPLE = {
    "CopyingCheck", "FeatureExtractor", "evaluate_images",
}  # fmt: skip


def documented():
    """Public classes, functions, methods and properties, each under one name."""
    found = {}
    for place in (cdrl_fast, ops, data, metrics, report, reference):
        names = getattr(place, "__all__", ("sample", "training_iteration"))
        for name in names:
            value = getattr(place, name)
            if inspect.ismodule(value):
                continue
            found.setdefault(value, name)
            for part, member in vars(value).items() if inspect.isclass(value) else ():
                member = getattr(member, "__func__", member)
                public = inspect.isfunction(member) or isinstance(member, property)
                if public and not part.startswith("_"):
                    found.setdefault(member, f"{name}.{part}")
    return [pytest.param(value, name, id=name) for value, name in found.items()]


@pytest.mark.parametrize(("value", "name"), documented())
def test_public_names_are_documented(value, name):
    text = value.__doc__
    assert text
    if isinstance(value, property) or (inspect.isclass(value) and issubclass(value, Exception)):
        return
    if "." not in name and name not in WITHOUT_EXAMPLE:
        assert ">>>" in text, "no example"
    if getattr(value, "_is_protocol", False):
        return
    parameters = [p for p in inspect.signature(value).parameters if p not in ("self", "cls")]
    assert [p for p in parameters if not re.search(rf"\b{p}\b", text)] == []


def with_examples():
    files = sorted(Path(cdrl_fast.__file__).parent.rglob("*.py"))
    return [f for f in files if ">>>" in f.read_text()]


@pytest.mark.parametrize("path", with_examples(), ids=lambda p: p.stem)
def test_examples_in_docstrings(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = path.relative_to(Path(cdrl_fast.__file__).parents[1]).with_suffix("").parts
    name = ".".join(parts).removesuffix(".__init__")
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
