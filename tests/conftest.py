import pytest
import torch

from cdrl_fast import CDRL, MLPEnergy, MLPInitializer, NoiseSchedule, ResNetEnergy, UNetInitializer


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
