"""Public names, their signatures and docstrings, and the dependencies of the import."""

import ast
import doctest
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
from functools import cached_property
from pathlib import Path
from types import FunctionType

import pytest

import cdrl_fast
from cdrl_fast import data, metrics, ops, reference, report

FUNCTIONS = ("sample", "training_iteration")
"""Public functions of `reference`, which has no ``__all__``."""
PROPERTIES = (property, cached_property)
API = """
About(versions, native, devices, backends, used)
BackendUnavailable
CDRL(energy, initializer, schedule, *, sample_shape=None)
CDRL.num_classes
CDRL.models
CDRL.label_slots(self, n, label, guidance, choose)
CDRL.is_image
CDRL.plan(self, steps=None)
CDRL.log_density(self, x, t=1, label=None)
CDRL.warm_start(self, other)
CDRL.check_class_names(self, names, source)
CDRL.label_indices(self, label, n)
CDRL.to_config(self)
CDRL.from_config(cls, config, networks=None)
CDRL.save_pretrained(self, folder, *, card=None, name=None)
CDRL.push_to_hub(self, repository, *, card=None, private=False)
CDRL.from_pretrained(cls, name, networks=None)
CDRLError
ChainDiverged
CheckpointError
DataError
Density()
Density.slots(self, choose, first=0)
Density.label_slots(self, n, label, guidance, choose)
Density.models
Density.mixtures
Hook()
Hook.started(self, state)
Hook.proposed(self, state)
Hook.stepped(self, state)
Hook.finished(self, state)
MLPEnergy(dim=2, width=128, multipliers=(1, 2, 2, 2), classes=0)
MLPEnergy.forward(self, y, logsnr, label=None)
MLPInitializer(dim=2, width=64, embedding=128, classes=0)
MLPInitializer.forward(self, x, logsnr, label=None)
ModelCard(about='', license=None, metrics=<factory>, recipe=None, picture=None)
ModelCard.text(self, model, name)
ModelCard.files(self, model, name)
NoiseSchedule(levels=6, steps=15, logsnr_max=9.8, logsnr_min=-5.1, kappa=0.0002,
    step_scale='cumulative')
NoiseSchedule.logsnr
NoiseSchedule.alpha_bar
NoiseSchedule.noise_variance
NoiseSchedule.add_noise(self, x0, noise, t)
NoiseSchedule.plan(self, steps=None)
NoiseSchedule.level(self, t, steps=None)
NoiseSchedule.to_dict(self)
Precision(name)
Precision.state
Precision.network
Precision.half
Precision.fp32_precision
Precision.autocast(self, device)
Precision.scaler(self, device)
ResNetEnergy(image_channels=3, width=128, multipliers=(1, 2, 2, 2), blocks=8, classes=0)
ResNetEnergy.forward(self, y, logsnr, label=None)
SampleRequest(n, seed=0, steps=None, label=None, guidance=0.0, first_sample=0, batch_size=None,
    denoise_scale=1.0, correctors=0, metropolis=False, progress=False)
SampleRequest.of(cls, where, n, options)
SampleRequest.largest_batch
SampleRequest.batches(self)
Sampler(model, *, device=None, precision='auto', backend='auto', graph='auto', compile=False)
Sampler.from_pretrained(cls, name, **options)
Sampler.sample(self, n, **options)
Sampler.sample_trace(self, n, *, trace='levels', **options)
Sampler.run(self, request, *, transition=None, hooks=(), chain=<class
    'cdrl_fast.sampling.chain.Chain'>)
Sampler.inpaint(self, images, known, *, samples=1, noise='shared', passes=1, candidates=1,
    **options)
Sampler.log_density(self, images, *, label=None, levels=(1,), statistics=None, seed=0,
    first_sample=0, batch_size=1024)
Sampler.level_statistics(self, images, *, label=None, levels=None, seed=0, batch_size=1024)
Sampler.working_memory(self, batch)
StepPlan(counts, multipliers)
StepPlan.to_dict(self)
Trace(samples, states, energies, levels, acceptance=None)
TrainConfig(batch_size=256, accumulate=1, shard=False, energy_lr=0.0001, initializer_lr=1e-05,
    warmup=10000, initializer_warmup_offset=500, clip=1.0, ema_decay=0.9999,
    variance_reduction=True, label_drop=0.1, flip=False, seed=0, precision='auto',
    recompute='activations', graph='auto', patience=3, rollbacks=3, log_every=10, preview_every=0,
    metrics_every=0, checkpoint_every=1000, checkpoint_minutes=0.0, keep=3, watch='none')
Trainer(model, data, config=None)
Trainer.step(self)
Trainer.fit(self, iterations, *, folder=None, progress=False, preview=None, evaluate=None)
Trainer.save(self, path)
Trainer.resume(cls, path, data, *, config=None, device=None, networks=None)
TrainingDiverged
UNetInitializer(image_channels=3, image_size=32, width=64, multipliers=(1, 1, 1), blocks=3,
    attention=(16, 8), dropout=0.1, classes=0)
UNetInitializer.forward(self, x, logsnr, label=None)
about()
conditional(model, label)
guided(conditional, unconditional, weight)
langevin(log_density, x, *, steps, step_size, seed=0, first_sample=0, first_step=0,
    metropolis=False, callback=None, backend='auto', compile=False)
langevin_trace(log_density, x, *, steps, **options)
load_released_checkpoint(path, *, image_size=32, schedule=None)
mixture(*components, weights=None)
negated(base, a, weight)
normal(shape, *, seed, draw, first_sample=0, device=None, dtype=torch.float32, backend='auto')
ops.Key(seed, draw, first_sample=0)
ops.Phase(steps, drift, pull, noise_std, rescale, key)
ops.langevin_step(x, grad, anchor, *, drift, pull, noise_std, rng, rescale=1.0, first_bad=None,
    out=None, backend='auto')
ops.langevin_step_(x, grad, anchor, **kwargs)
ops.mlp_chain_(program, y, anchor=None, *, phase, rows=None, first_bad=None, precision='fp32',
    backend='auto')
ops.normal(shape, *, seed, draw, first_sample=0, device=None, dtype=torch.float32, backend='auto')
ops.rng_state(*, seed, draw, first_sample=0, device=None)
product(*factors, base=None)
reference.sample(model, n, *, seed=0, steps=None, label=None, guidance=0.0, first_sample=0,
    denoise_scale=1.0, dtype=torch.float32, noise='stream')
reference.training_iteration(model, x0, label, *, energy_optimizer, initializer_optimizer, seed=0,
    iteration=0, variance_reduction=True, label_drop=0.1, clip=1.0, noise='stream')
sample_to_folder(sampler, n, folder, *, worker=0, workers=1, **options)
tempered(a, temperature)
tune_steps(model, data, *, budget, samples=500, guidance=0.0, seed=10000, max_seconds=600.0,
    extractor=None, progress=False)
"""
"""Every public name of `cdrl_fast`, `ops` and `reference`, with its signature."""


def public_api():
    """Yield the lines of `API`."""
    for name in cdrl_fast.__all__:
        value = getattr(cdrl_fast, name)
        if inspect.ismodule(value):
            for part in getattr(value, "__all__", FUNCTIONS):
                yield f"{name}.{part}{signature(getattr(value, part))}"
        elif inspect.isclass(value) and issubclass(value, Exception):
            yield name
        else:
            yield f"{name}{signature(value)}"
            if inspect.isclass(value):
                yield from (f"{name}.{member}{signature(f)}" for member, f in members(value))


def signature(value):
    if isinstance(value, PROPERTIES):
        return ""
    parameters = inspect.signature(value).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(plain))


def members(kind):
    """Yield name and function or property of the public members that this library defines."""
    for base in kind.__mro__:
        for name, member in vars(base).items() if base.__module__.startswith("cdrl_fast") else ():
            function = getattr(member, "__func__", member)
            if not name.startswith("_") and isinstance(function, (FunctionType, *PROPERTIES)):
                yield name, function


def test_public_names_and_signatures():
    assert all(getattr(cdrl_fast, name).__doc__ for name in cdrl_fast.__all__)
    lines = [textwrap.fill(line, 100, subsequent_indent="    ") for line in public_api()]
    assert "\n".join(lines).strip() == API.strip()
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = cdrl_fast.nothing_of_that_name


def test_type_checkers_see_the_names_that_are_imported_on_first_use():
    tree = ast.parse(Path(cdrl_fast.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    names = [name.asname for node in block.body for name in node.names]
    assert sorted(names) == sorted({*cdrl_fast.__all__, "data", "metrics", "report"})
    for node in block.body:
        for name in node.names:
            value = getattr(importlib.import_module(node.module), name.name)
            assert getattr(cdrl_fast, name.asname) is value


def test_import_needs_torch_and_numpy_alone():
    """Hide every other dependency; the package imports, builds a model and samples."""
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
from cdrl_fast import *
model = cdrl_fast.CDRL(
    cdrl_fast.MLPEnergy(2, 8, (1,)), cdrl_fast.MLPInitializer(2, 64, 8), cdrl_fast.NoiseSchedule()
)
print(tuple(cdrl_fast.Sampler(model).sample(3, steps=1).shape), cdrl_fast.Trainer.__name__)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.strip() == "(3, 2) Trainer", process.stderr


WITHOUT_EXAMPLE = {"CopyingCheck", "FeatureExtractor", "evaluate_images"}
"""Names whose use the examples of related functions show."""


def documented():
    """Return public classes, functions, methods and properties, each under one name."""
    objects = {}
    for module in (cdrl_fast, ops, data, metrics, report, reference):
        for name in getattr(module, "__all__", FUNCTIONS):
            value = getattr(module, name)
            if inspect.ismodule(value):
                continue
            objects.setdefault(value, name)
            for member, function in members(value) if inspect.isclass(value) else ():
                objects.setdefault(function, f"{name}.{member}")
    return [pytest.param(value, name, id=name) for value, name in objects.items()]


@pytest.mark.parametrize(("value", "name"), documented())
def test_public_names_are_documented(value, name):
    text = value.__doc__
    assert text
    if ">>>" in text:
        sections = re.findall(r"^ *([A-Z][A-Za-z]*):$", text[: text.index(">>>")], re.MULTILINE)
        assert sections[-1:] == ["Examples"]
    if isinstance(value, PROPERTIES) or (inspect.isclass(value) and issubclass(value, Exception)):
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


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_every_module_can_be_imported_first():
    """Import each in a process of its own: packages that import each other would fail."""
    package = Path(cdrl_fast.__file__).parent
    names = (".".join(p.relative_to(package.parent).parts) for p in package.rglob("*.py"))
    modules = {name.removesuffix(".py").removesuffix(".__init__") for name in names}
    code = """
import os, sys
import torch
for name in sys.argv[1:]:
    if os.fork() == 0:
        __import__(name)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{name} cannot be imported first")
"""
    names = sorted(name for name in modules if not name.endswith("__main__"))
    process = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
