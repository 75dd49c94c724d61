"""Initializers that several tests use."""

import torch

from cdrl_fast import CDRL, UNetInitializer
from tests.conftest import randomize

# Image channels, size, width, multipliers, blocks and attention of a network; classes; batch.
CASES = {
    "grey, 28": ((1, 28, 32, (1, 1), 1, (14,)), 0, 3),
    "colour, 32": ((3, 32, 64, (1, 1, 1), 1, (16, 8)), 5, 2),
    "two blocks, odd width": ((3, 8, 20, (1, 2, 2), 2, (8, 2)), 3, 7),
    "narrowing": ((2, 10, 10, (2, 1), 1, (10,)), 2, 4),
    "one level": ((1, 5, 6, (3,), 1, (5,)), 0, 7),
}


def network_and_inputs(case, *, std=0.05, seed=0):
    """Return a network in eval mode, images, mixed levels and mixed labels, in float32.

    Args:
        case: an entry of `CASES`; without options the network is that of the pretrained digits.
        std: standard deviation of the noise on the parameters; 0 leaves their initial values.
        seed: seed of the parameters, the noise and the images.
    """
    options, classes, batch = case
    torch.manual_seed(seed)
    if options is None:
        network = CDRL.from_pretrained("digits").initializer.eval()
    else:
        network = UNetInitializer(*options, classes=classes).eval()
        network = randomize(network, seed, std) if std else network
    size = network.config["image_size"]
    x = torch.randn(batch, network.stem.in_channels, size, size)
    label = torch.arange(batch) % (classes + 1) if classes else None
    return network, x, torch.linspace(-5, 9.8, batch), label
