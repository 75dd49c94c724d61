"""Initializers that several tests compute with."""

import torch

from cdrl_fast import CDRL, UNetInitializer
from tests.conftest import randomize

# Image channels, size, width, multipliers, blocks and attention of a network; classes and batch.
CASES = {
    "grey, 28": ((1, 28, 32, (1, 1), 1, (14,)), 0, 3),
    "colour, 32": ((3, 32, 64, (1, 1, 1), 1, (16, 8)), 5, 2),
    "two blocks, odd width": ((3, 8, 20, (1, 2, 2), 2, (8, 2)), 3, 7),
    "narrowing": ((2, 10, 10, (2, 1), 1, (10,)), 2, 4),
    "one level": ((1, 5, 6, (3,), 1, (5,)), 0, 7),
}


def made(case, *, std=0.05, seed=0):
    """A network in eval mode, images, and mixed levels and labels, in float32.

    ``case``: as in `CASES`; without options it is the shipped digits'. ``std`` 0 leaves the
    network as it begins.
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
