"""Energy-based models by cooperative diffusion recovery likelihood (CDRL).

Example:
    >>> from cdrl_fast import CDRL, Sampler
    >>> images = Sampler(CDRL.from_pretrained("digits")).sample(4, label="3", steps=1)
    >>> images.shape
    torch.Size([4, 1, 8, 8])
"""

from cdrl_fast import ops, reference
from cdrl_fast.card import ModelCard
from cdrl_fast.dynamics import langevin
from cdrl_fast.energies import Density, given, guided, mixture, negated, product, tempered
from cdrl_fast.environment import About, about
from cdrl_fast.errors import (
    BackendUnavailable,
    CDRLError,
    ChainDiverged,
    CheckpointError,
    DataError,
    TrainingDiverged,
)
from cdrl_fast.model import CDRL
from cdrl_fast.networks import MLPEnergy, MLPInitializer, ResNetEnergy, UNetInitializer
from cdrl_fast.ops import normal
from cdrl_fast.precision import Precision
from cdrl_fast.released import load_released_checkpoint
from cdrl_fast.sampler import Sampler
from cdrl_fast.schedule import NoiseSchedule, StepPlan
from cdrl_fast.shards import sample_to_folder
from cdrl_fast.trace import Trace
from cdrl_fast.train_config import TrainConfig
from cdrl_fast.trainer import Trainer
from cdrl_fast.tuning import tune_steps

__version__ = "0.1.0"

__all__ = [
    "CDRL",
    "About",
    "BackendUnavailable",
    "CDRLError",
    "ChainDiverged",
    "CheckpointError",
    "DataError",
    "Density",
    "MLPEnergy",
    "MLPInitializer",
    "ModelCard",
    "NoiseSchedule",
    "Precision",
    "ResNetEnergy",
    "Sampler",
    "StepPlan",
    "Trace",
    "TrainConfig",
    "Trainer",
    "TrainingDiverged",
    "UNetInitializer",
    "about",
    "given",
    "guided",
    "langevin",
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
