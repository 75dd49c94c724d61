"""Networks of CDRL: energies and initializers for images and for 2-D points."""

from cdrl_fast.networks.mlp import MLPEnergy, MLPInitializer
from cdrl_fast.networks.resnet import ResNetEnergy
from cdrl_fast.networks.unet import UNetInitializer

__all__ = ["MLPEnergy", "MLPInitializer", "ResNetEnergy", "UNetInitializer"]
