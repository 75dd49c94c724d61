"""Energy-based models by cooperative diffusion recovery likelihood (CDRL).

Examples:
    >>> from cdrl_fast import CDRL, Sampler
    >>> images = Sampler(CDRL.from_pretrained("digits")).sample(4, label="3", steps=1)
    >>> images.shape
    torch.Size([4, 1, 8, 8])
"""

from cdrl_fast import ops, reference
from cdrl_fast._extension import VERSION
from cdrl_fast.environment import About, about
from cdrl_fast.errors import (
    BackendUnavailable,
    CDRLError,
    ChainDiverged,
    CheckpointError,
    DataError,
    TrainingDiverged,
)
from cdrl_fast.evaluation.tuning import tune_steps
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.densities import (
    Density,
    conditional,
    guided,
    mixture,
    negated,
    product,
    tempered,
)
from cdrl_fast.model.released import load_released_checkpoint
from cdrl_fast.model.schedule import NoiseSchedule, StepPlan
from cdrl_fast.networks import MLPEnergy, MLPInitializer, ResNetEnergy, UNetInitializer
from cdrl_fast.ops import normal
from cdrl_fast.precision import Precision
from cdrl_fast.sampling.hooks import Hook
from cdrl_fast.sampling.langevin import langevin, langevin_trace
from cdrl_fast.sampling.request import SampleRequest
from cdrl_fast.sampling.sampler import Sampler
from cdrl_fast.sampling.shards import sample_to_folder
from cdrl_fast.sampling.trace import Trace
from cdrl_fast.storage.card import ModelCard
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.trainer import Trainer

__version__ = VERSION

__all__ = [
    "CDRL",
    "About",
    "BackendUnavailable",
    "CDRLError",
    "ChainDiverged",
    "CheckpointError",
    "DataError",
    "Density",
    "Hook",
    "MLPEnergy",
    "MLPInitializer",
    "ModelCard",
    "NoiseSchedule",
    "Precision",
    "ResNetEnergy",
    "SampleRequest",
    "Sampler",
    "StepPlan",
    "Trace",
    "TrainConfig",
    "Trainer",
    "TrainingDiverged",
    "UNetInitializer",
    "about",
    "conditional",
    "guided",
    "langevin",
    "langevin_trace",
    "load_released_checkpoint",
    "mixture",
    "negated",
    "normal",
    "ops",
    "product",
    "reference",
    "sample_to_folder",
    "tempered",
    "tune_steps",
]
