"""The standard FID, in the features of the Inception network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdrl_fast._lazy import optional_module
from cdrl_fast.data.images import as_bytes
from cdrl_fast.errors import CheckpointError
from cdrl_fast.metrics.distances import check_images, extracted, frechet

_INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def inception_fid(real: Tensor, fake: Tensor, *, weights: Path | None = None) -> float:
    """Return the standard FID: ``frechet_distance`` in the 2048 pooled features of Inception v3.

    Grey images are repeated over three channels; pixels are rounded to 8 bits and resized as in
    the original TensorFlow network. Nothing is downloaded. Published values use 50,000 samples.

    Args:
        real: images (n, C, H, W) in [-1, 1], C 1 or 3, n at least 2, better above 2048.
        fake: images (m, C, H, W) in [-1, 1], of the same image shape.
        weights: the weights file of torch-fidelity; None: the file in PyTorch's folder of
            downloads, ``torch.hub.get_dir()/checkpoints``.

    Returns:
        The distance, at least 0.

    Raises:
        TypeError: images are not floating point.
        ValueError: images have a wrong shape, C other than 1 or 3, or non-finite values.
        ImportError: torchmetrics or torch-fidelity is not installed.
        CheckpointError: the weights are missing or cannot be loaded.

    Examples:
        >>> from cdrl_fast.metrics import inception_fid
        >>> inception_fid(samples, images)  # doctest: +SKIP
    """
    check_images(2, real=real, fake=fake)
    if real.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {real.shape[1]}")
    optional_module("torch_fidelity", "torch-fidelity", "inception")
    network = _inception(weights or Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_WEIGHTS)
    return frechet(extracted(real, network, 50), extracted(fake, network, 50))


def _inception(weights: Path) -> _Inception:
    if not weights.is_file():
        raise CheckpointError(
            f"{weights}: no Inception weights; download {_INCEPTION_WEIGHTS} from the releases of "
            "github.com/toshas/torch-fidelity and pass its path as weights="
        )
    fid = optional_module("torchmetrics.image.fid", "torchmetrics", "inception")
    try:
        # torch-fidelity unpickles any object, so the file is first checked to hold only tensors.
        torch.load(weights, map_location="cpu", weights_only=True)
        network = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
    except Exception as error:  # a damaged archive can raise almost any exception
        raise CheckpointError(f"{weights}: not Inception weights ({error})") from error
    # The original network resizes without antialiasing.
    network.use_antialias = False
    return _Inception(network)


class _Inception:
    """The Inception network as a feature extractor for images in [-1, 1]."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(as_bytes(images).cpu().expand(-1, 3, -1, -1))
        return features
