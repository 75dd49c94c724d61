"""Energy-based models by cooperative diffusion recovery likelihood (CDRL).

Examples:
    >>> from cdrl_fast import CDRL, Sampler
    >>> images = Sampler(CDRL.from_pretrained("digits")).sample(4, label="3", steps=1)
    >>> images.shape
    torch.Size([4, 1, 8, 8])
"""

from importlib import import_module
from typing import TYPE_CHECKING

from cdrl_fast._extension import VERSION

if TYPE_CHECKING:
    from cdrl_fast import data as data
    from cdrl_fast import metrics as metrics
    from cdrl_fast import ops as ops
    from cdrl_fast import reference as reference
    from cdrl_fast import report as report
    from cdrl_fast.environment import About as About
    from cdrl_fast.environment import about as about
    from cdrl_fast.errors import BackendUnavailable as BackendUnavailable
    from cdrl_fast.errors import CDRLError as CDRLError
    from cdrl_fast.errors import ChainDiverged as ChainDiverged
    from cdrl_fast.errors import CheckpointError as CheckpointError
    from cdrl_fast.errors import DataError as DataError
    from cdrl_fast.errors import TrainingDiverged as TrainingDiverged
    from cdrl_fast.evaluation.tuning import tune_steps as tune_steps
    from cdrl_fast.model.cdrl import CDRL as CDRL
    from cdrl_fast.model.densities import Density as Density
    from cdrl_fast.model.densities import conditional as conditional
    from cdrl_fast.model.densities import guided as guided
    from cdrl_fast.model.densities import mixture as mixture
    from cdrl_fast.model.densities import negated as negated
    from cdrl_fast.model.densities import product as product
    from cdrl_fast.model.densities import tempered as tempered
    from cdrl_fast.model.released import load_released_checkpoint as load_released_checkpoint
    from cdrl_fast.model.schedule import NoiseSchedule as NoiseSchedule
    from cdrl_fast.model.schedule import StepPlan as StepPlan
    from cdrl_fast.networks import MLPEnergy as MLPEnergy
    from cdrl_fast.networks import MLPInitializer as MLPInitializer
    from cdrl_fast.networks import ResNetEnergy as ResNetEnergy
    from cdrl_fast.networks import UNetInitializer as UNetInitializer
    from cdrl_fast.ops import normal as normal
    from cdrl_fast.precision import Precision as Precision
    from cdrl_fast.sampling.hooks import Hook as Hook
    from cdrl_fast.sampling.langevin import langevin as langevin
    from cdrl_fast.sampling.langevin import langevin_trace as langevin_trace
    from cdrl_fast.sampling.request import SampleRequest as SampleRequest
    from cdrl_fast.sampling.sampler import Sampler as Sampler
    from cdrl_fast.sampling.shards import sample_to_folder as sample_to_folder
    from cdrl_fast.sampling.trace import Trace as Trace
    from cdrl_fast.storage.card import ModelCard as ModelCard
    from cdrl_fast.training.config import TrainConfig as TrainConfig
    from cdrl_fast.training.trainer import Trainer as Trainer

__version__ = VERSION

_NAMES = {
    "environment": "About about",
    "errors": "BackendUnavailable CDRLError ChainDiverged CheckpointError DataError "
    "TrainingDiverged",
    "evaluation.tuning": "tune_steps",
    "model.cdrl": "CDRL",
    "model.densities": "Density conditional guided mixture negated product tempered",
    "model.released": "load_released_checkpoint",
    "model.schedule": "NoiseSchedule StepPlan",
    "networks": "MLPEnergy MLPInitializer ResNetEnergy UNetInitializer",
    "ops": "normal",
    "precision": "Precision",
    "sampling.hooks": "Hook",
    "sampling.langevin": "langevin langevin_trace",
    "sampling.request": "SampleRequest",
    "sampling.sampler": "Sampler",
    "sampling.shards": "sample_to_folder",
    "sampling.trace": "Trace",
    "storage.card": "ModelCard",
    "training.config": "TrainConfig",
    "training.trainer": "Trainer",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
_SUBPACKAGES = ("data", "metrics", "ops", "reference", "report")

__all__ = sorted([*_MODULES, "ops", "reference"])

if not TYPE_CHECKING:  # a type checker would take any name for one that this returns

    def __getattr__(name: str) -> object:
        """Import a public name on first use: without one, nothing loads torch."""
        if name in _SUBPACKAGES:
            return import_module(f"cdrl_fast.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module 'cdrl_fast' has no attribute {name!r}")
        value = getattr(import_module(f"cdrl_fast.{_MODULES[name]}"), name)
        return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
