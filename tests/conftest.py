import pytest
import torch

from cdrl_fast import (
    CDRL,
    MLPEnergy,
    MLPInitializer,
    NoiseSchedule,
    ResNetEnergy,
    UNetInitializer,
    _native,
)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def randomize(model, seed=0, std=0.1):
    """Moves every parameter off its start, zeros and ones included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(params=["avx512", "avx2", "portable"])
def cpu_variant(request):
    """The compiled CPU kernels of each instruction set that this machine has."""
    module = _native.load()
    if module is None:
        pytest.skip(_native.reason())
    if request.param not in module.cpu_variants():
        pytest.skip(f"this processor has no {request.param}")
    before = module.cpu_variant()
    module.use_cpu_variant(request.param)
    yield request.param
    module.use_cpu_variant(before)


@pytest.fixture
def image_model():
    """A small class-conditional model for 8×8 grey images, with random weights."""
    torch.manual_seed(0)
    names = ("zero", "one", "two")
    energy = ResNetEnergy(1, 8, (1, 2), 1, classes=names)
    initializer = UNetInitializer(1, 8, 8, (1, 1), 1, (4,), 0.1, classes=names)
    return randomize(CDRL(energy, initializer, NoiseSchedule(steps=3)))


@pytest.fixture
def point_model():
    """A small unconditional model for 2-D points, with random weights."""
    torch.manual_seed(0)
    schedule = NoiseSchedule(steps=3, kappa=1e-3, step_scale="constant")
    return randomize(CDRL(MLPEnergy(2, 16, (1, 2)), MLPInitializer(2, 64, 32), schedule))
