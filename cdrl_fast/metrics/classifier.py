"""A classifier of small images that is trained on demand, and the cache of its weights."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cdrl_fast.data import Dataset
from cdrl_fast.errors import DataError
from cdrl_fast.storage.folder import tensors_to_bytes, write_atomic


class Classifier(nn.Module):
    """A small convolutional network that classifies small images.

    No layer behaves differently in training mode, so features never depend on the mode.

    Args:
        shape: (C, H, W) of the images: 1 to 3 channels, height and width from 8 to 64.
        classes: the number of classes ``k``, at least 2.

    Raises:
        ValueError: ``shape`` or ``classes`` is out of range.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import Classifier
        >>> Classifier((1, 8, 8), 10).features(torch.zeros(2, 1, 8, 8)).shape  # untrained
        torch.Size([2, 64])
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(shape) != 3 or not 1 <= shape[0] <= 3 or not all(8 <= n <= 64 for n in shape[1:]):
            raise ValueError(
                f"shape must be (C, H, W) with C from 1 to 3, H and W from 8 to 64, got {shape}"
            )
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        self.shape, self.classes = tuple(shape), classes
        layers: list[nn.Module] = [nn.Conv2d(shape[0], 32, 3, padding=1), nn.ReLU()]
        width = 32
        # Pooling halves the shorter side until it is 4 to 7.
        for _ in range(int(math.log2(min(shape[1:]))) - 3):
            layers += [nn.MaxPool2d(2), nn.Conv2d(width, 64, 3, padding=1), nn.ReLU()]
            width = 64
        layers += [nn.Conv2d(width, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU())
        self.head = nn.Linear(64, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the output of the penultimate layer, which is nonnegative.

        Args:
            images: float32 (n, C, H, W) in [-1, 1].

        Returns:
            float32 (n, 64).
        """
        if images.shape[1:] != self.shape:
            raise ValueError(
                f"images must have shape (n, {', '.join(map(str, self.shape))}), "
                f"got {tuple(images.shape)}"
            )
        features: Tensor = self.trunk(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images: (n, C, H, W) → (n, k), where column 0 is class 1."""
        logits: Tensor = self.head(self.features(images))
        return logits

    @torch.no_grad()
    def predict(self, images: Tensor, batch_size: int = 1000) -> Tensor:
        """Return the most likely class of each image, ``batch_size`` images at a time.

        Args:
            images: float32 (n, C, H, W) in [-1, 1], n at least 1.
            batch_size: at least 1.

        Returns:
            int64 (n,) in 1 … k, on the device of ``images``.
        """
        device = self.head.weight.device
        parts = [self(x.to(device)).argmax(1) + 1 for x in torch.split(images, batch_size)]
        return torch.cat(parts).to(images.device)


@dataclass(frozen=True)
class _Recipe:
    """The training options, which are part of the cache key.

    With the data and the seed they determine the weights, so ``version`` must change whenever the
    network or the training loop changes. ``rotation`` (radians), ``zoom`` (relative) and ``shift``
    (half image widths) are the limits of the random augmentation.
    """

    epochs: int
    version: int = 1
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    rotation: float = 0.17
    zoom: float = 0.1
    shift: float = 0.12
    noise: float = 0.05


def train_classifier(
    data: Dataset, *, seed: int = 0, epochs: int | None = None, cache: Path | None = None
) -> Classifier:
    """Train a classifier on labelled images, or load it from the cache.

    Training runs on the CPU and gives the same weights for the same data, seed and number of
    threads; the global random state does not change. Training images are slightly rotated, zoomed,
    shifted and noised, never mirrored. On scikit-learn's digits, with 80 % of them for training,
    the accuracy on the rest is about 99.5 % after about 5 seconds on one core.

    Args:
        data: images with labels of at least 2 classes.
        seed: the seed of the initial weights, the order of the images and their augmentation.
        epochs: the number of passes over the data; None: 20, fewer if that is more than 240,000
            images, but at least 2.
        cache: the folder for trained weights, one safetensors file per data, recipe and seed.
            None means ``$CDRL_FAST_CACHE``, or else ``~/.cache/cdrl_fast``. A damaged file there
            is replaced with a warning; if the folder cannot be written, there is a warning.

    Returns:
        The classifier on the CPU, in evaluation mode.

    Raises:
        DataError: ``data`` contains points or has no labels.
        ValueError: ``epochs`` is not positive, or ``Classifier`` does not support the image shape
            or the number of classes.

    Examples:
        >>> from cdrl_fast.data import load_data
        >>> from cdrl_fast.metrics import train_classifier
        >>> digits = load_data("digits")
        >>> classifier = train_classifier(digits)  # doctest: +SKIP
        >>> classifier.predict(digits.batch(range(3))[0])  # doctest: +SKIP
        tensor([1, 2, 3])
    """
    if not data.is_images or data.labels is None:
        raise DataError(f"{data.name}: a classifier needs images with labels")
    if epochs is None:
        epochs = max(2, min(20, 240_000 // len(data)))
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    recipe = _Recipe(epochs)
    folder = cache or Path(os.environ.get("CDRL_FAST_CACHE") or "~/.cache/cdrl_fast")
    path = folder.expanduser() / f"classifier-{_key(data, recipe, seed)}.safetensors"
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
        # torch.manual_seed would also reseed the accelerators, whose state is not restored.
        torch.default_generator.manual_seed(seed)
        model = Classifier(data.sample_shape, len(data.classes))
        if not _restored(model, path):
            _fit(model, data, recipe)
            _save(model, path)
    return model.eval()


def _key(data: Dataset, recipe: _Recipe, seed: int) -> str:
    settings = [data.values.shape, data.maximum, len(data.classes), asdict(recipe), seed]
    key = hashlib.sha256(json.dumps(settings).encode())
    for array in (data.values, data.labels):
        key.update(np.ascontiguousarray(array).data)
    return key.hexdigest()[:32]


def _fit(model: Classifier, data: Dataset, recipe: _Recipe) -> None:
    """Minimise the smoothed cross-entropy by AdamW; the learning rate is half a sine wave."""
    images, labels = data.batch(torch.arange(len(data)))
    assert labels is not None
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay)
    steps, step = recipe.epochs * math.ceil(len(data) / recipe.batch_size), 0
    for _ in range(recipe.epochs):
        for batch in torch.split(torch.randperm(len(data)), recipe.batch_size):
            rate = recipe.learning_rate * math.sin(math.pi * (step + 0.5) / steps)
            optimizer.param_groups[0]["lr"] = rate
            loss = functional.cross_entropy(
                model(_augmented(images[batch], recipe)),
                labels[batch] - 1,
                label_smoothing=recipe.label_smoothing,
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            step += 1


def _augmented(images: Tensor, recipe: _Recipe) -> Tensor:
    angle, zoom, across, down = torch.rand(4, len(images)).mul_(2).sub_(1)
    angle, zoom = recipe.rotation * angle, 1 + recipe.zoom * zoom
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = [cos, -sin, recipe.shift * across, sin, cos, recipe.shift * down]
    grid = functional.affine_grid(
        torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False
    )
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved + recipe.noise * torch.randn_like(images)


def _digest(state: dict[str, Tensor]) -> str:
    return hashlib.sha256(tensors_to_bytes(state)).hexdigest()


def _restored(model: Classifier, path: Path) -> bool:
    """Load the weights and return True if the file exists and is undamaged."""
    if not path.exists():
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if (file.metadata() or {}).get("sha256") != _digest(state):
                raise ValueError("its checksum does not match")
        model.load_state_dict(state)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        warnings.warn(f"{path}: damaged ({error}); training again", stacklevel=3)
        return False
    return True


def _save(model: Classifier, path: Path) -> None:
    from safetensors.torch import save

    state = model.state_dict()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(state, metadata={"sha256": _digest(state)}))
    except OSError as error:
        # The weights are usable without a cache, so a full disk must not fail the training.
        warnings.warn(f"{path}: cannot be written ({error}); it is not cached", stacklevel=3)
