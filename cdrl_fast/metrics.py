"""How good samples are, measured without downloading a network.

Images are compared in the features of a small classifier that is trained on the spot: Fréchet
distance, precision and recall, label accuracy; and in pixels, to tell samples from copies of the
training images. Points of the plane are compared with the squares of the checkerboard. Images are
floating-point tensors of shape (n, C, H, W) in [-1, 1] throughout.

Unless said otherwise the functions raise TypeError for images that are not floating point,
ValueError for a wrong shape, for too few images and for values that are not finite, and
ImportError where scikit-learn or torchmetrics is not installed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cdrl_fast.data import Dataset, in_checkerboard
from cdrl_fast.errors import CheckpointError, DataError

_INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


class FeatureExtractor(Protocol):
    """Anything that turns images into feature vectors, such as a ``Classifier``."""

    def features(self, images: Tensor) -> Tensor:
        """One feature vector per image: (n, C, H, W) to floating point (n, d)."""


class Classifier(nn.Module):
    """A small convolutional network that tells the classes of small images apart.

    It has no layer that behaves differently in training, so features never depend on the mode.

    Args:
        shape: (C, H, W) of the images: 1 to 3 channels, height and width from 8 to 64.
        classes: how many classes ``k`` there are, at least 2.

    Raises:
        ValueError: ``shape`` or ``classes`` is out of range.
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
        # The shorter side is halved until it is 4 to 7; the last time comes after its convolution.
        for _ in range(int(math.log2(min(shape[1:]))) - 3):
            layers += [nn.MaxPool2d(2), nn.Conv2d(width, 64, 3, padding=1), nn.ReLU()]
            width = 64
        layers += [nn.Conv2d(width, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU())
        self.head = nn.Linear(64, classes)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer: float32 (n, C, H, W) to float32 (n, 64), none negative."""
        if images.shape[1:] != self.shape:
            raise ValueError(
                f"images must have shape (n, {', '.join(map(str, self.shape))}), "
                f"got {tuple(images.shape)}"
            )
        features: Tensor = self.trunk(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Unnormalized log-probabilities: float32 (n, C, H, W) to (n, k); column 0 is class 1."""
        logits: Tensor = self.head(self.features(images))
        return logits

    @torch.no_grad()
    def predict(self, images: Tensor, batch_size: int = 1000) -> Tensor:
        """The likeliest class of each image, int64 (n,) in 1 … k, on the device of ``images``."""
        device = self.head.weight.device
        parts = [self(x.to(device)).argmax(1) + 1 for x in torch.split(images, batch_size)]
        return torch.cat(parts).to(images.device)


@dataclass(frozen=True)
class _Recipe:
    """All that fixes the trained weights besides the data and the seed; part of the cache key.

    ``version`` must change whenever the network or the code of the training loop does. ``shift``
    is in half image widths, ``rotation`` in radians; both and ``zoom`` are the largest drawn.
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
    data: Dataset, *, seed: int = 0, epochs: int = 20, cache: Path | None = None
) -> Classifier:
    """Trains a classifier on labelled images, or takes it from the cache.

    Training runs on the CPU and gives the same weights for the same data, seed and number of
    threads; the global random state is left as it was. Images are slightly turned, zoomed, moved
    and noised, never mirrored. On scikit-learn's digits, 80 % of them for training, the accuracy
    on the rest is about 99.5 % after some 5 seconds on one core.

    Args:
        data: images with labels of at least 2 classes.
        seed: of the initial weights, the order of the images and their changes.
        epochs: how often each image is seen.
        cache: the folder for trained weights, one safetensors file per data, recipe and seed.
            None means ``$CDRL_FAST_CACHE``, or else ``~/.cache/cdrl_fast``. A damaged file there
            is replaced, with a warning; a folder that cannot be written is warned about.

    Returns:
        The classifier on the CPU, in evaluation mode.

    Raises:
        DataError: ``data`` holds points or has no labels.
        ValueError: ``epochs`` is not positive, or ``data`` is not something for a ``Classifier``.
    """
    if not data.is_images or data.labels is None:
        raise DataError(f"{data.name}: a classifier needs images with labels")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    recipe = _Recipe(epochs)
    folder = cache or Path(os.environ.get("CDRL_FAST_CACHE") or "~/.cache/cdrl_fast")
    path = folder.expanduser() / f"classifier-{_key(data, recipe, seed)}.safetensors"
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
        # torch.manual_seed would also reseed the accelerators, which nothing here uses.
        torch.default_generator.manual_seed(seed)
        model = Classifier(data.sample_shape, len(data.classes))
        if not _restored(model, path):
            _fit(model, data, recipe)
            _save(model, path)
    return model.eval()


def _key(data: Dataset, recipe: _Recipe, seed: int) -> str:
    about = [data.values.shape, data.maximum, len(data.classes), asdict(recipe), seed]
    key = hashlib.sha256(json.dumps(about).encode())
    for array in (data.values, data.labels):
        key.update(np.ascontiguousarray(array).data)
    return key.hexdigest()[:32]


def _fit(model: Classifier, data: Dataset, recipe: _Recipe) -> None:
    """AdamW on the smoothed cross-entropy; the learning rate follows half a sine wave."""
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
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().numpy().data)
    return digest.hexdigest()


def _restored(model: Classifier, path: Path) -> bool:
    """Loads the weights if there is a sound file."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return False
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
    """Writes the weights so that a reader finds all of them or no file."""
    from safetensors.torch import save

    state, temporary = model.state_dict(), None
    content = save(state, metadata={"sha256": _digest(state)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # The weights are good without a cache, so a full disk must not cost the training.
        warnings.warn(f"{path}: cannot be written ({error}); it is not cached", stacklevel=3)
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _package(module: str, package: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'this metric needs {package} ({error}): pip install "cdrl-fast[{extra}]"'
        ) from error


def _check_images(least: int = 1, **images: Tensor) -> None:
    """Each set: floating point, (n, C, H, W), n at least ``least``; all of one image shape."""
    first, *_ = images.values()
    for name, x in images.items():
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point in [-1, 1], got {x.dtype}")
        if x.ndim != 4 or x.shape[1:] != first.shape[1:]:
            shapes = {key: tuple(value.shape) for key, value in images.items()}
            raise ValueError(f"expected images of one shape (n, C, H, W), got {shapes}")
        if len(x) < least:
            raise ValueError(f"{name} must hold at least {least} images, got {len(x)}")
        if not x.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")


@torch.no_grad()
def _features(images: Tensor, extractor: FeatureExtractor, batch_size: int = 1000) -> Tensor:
    """The features of all images, float64 (n, d) on the CPU."""
    if isinstance(extractor, nn.Module) and any(True for _ in extractor.parameters()):
        images = images.to(next(extractor.parameters()).device)
    parts = [extractor.features(x) for x in torch.split(images, batch_size)]
    features = torch.cat(parts).to("cpu", torch.float64)
    if features.ndim != 2 or not features.isfinite().all():
        raise ValueError(
            f"extractor must give finite features of shape (n, d), got {tuple(features.shape)}"
        )
    return features


class _Given(nn.Module):
    """Stands in for a feature network where the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _frechet(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance of features, float64 (n, d) and (m, d)."""
    fid = _package("torchmetrics.image.fid", "torchmetrics", "demo")
    # Not set_dtype(float64): it would convert a network given as ``feature`` in place, and the
    # sums are float64 anyway as long as the features are.
    metric = fid.FrechetInceptionDistance(feature=_Given(real.shape[1]))
    centre = real.mean(0)  # the distance does not change, but the covariances lose no digits
    metric.update(real - centre, real=True)
    metric.update(fake - centre, real=False)
    return max(0.0, float(metric.compute()))


def frechet_distance(real: Tensor, fake: Tensor, extractor: FeatureExtractor) -> float:
    """Fréchet distance between Gaussians fitted to the features of two sets of images.

        |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))

    with the sample means and the unbiased sample covariances, in float64. Its expectation falls
    as the sets grow, so only distances at the same two counts can be compared.
    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium", NeurIPS 2017; here with ``extractor`` in place of the Inception network.

    Args:
        real: images (n, C, H, W) in [-1, 1], n at least 2.
        fake: images (m, C, H, W) in [-1, 1], m at least 2.
        extractor: what turns images into feature vectors.
    """
    _check_images(2, real=real, fake=fake)
    return _frechet(_features(real, extractor), _features(fake, extractor))


def _inside(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """The share of points in a ball around some manifold point that reaches its k-th neighbour."""
    search = _package("sklearn.neighbors", "scikit-learn", "demo").NearestNeighbors
    distances, _ = search(n_neighbors=neighbours).fit(manifold.numpy()).kneighbors()
    radius = torch.from_numpy(distances[:, -1])
    # Matrix products would blur the distance of a point to itself.
    exact = "donot_use_mm_for_euclid_dist"
    covered = [
        (torch.cdist(x, manifold, compute_mode=exact) <= radius).any(1)
        for x in torch.split(points, 1000)
    ]
    return float(torch.cat(covered).double().mean())


def _precision_recall(real: Tensor, fake: Tensor, neighbours: int) -> tuple[float, float]:
    return _inside(fake, real, neighbours), _inside(real, fake, neighbours)


def precision_recall(
    real: Tensor, fake: Tensor, extractor: FeatureExtractor, *, neighbours: int = 5
) -> tuple[float, float]:
    """Improved precision and recall.

    A set's manifold is the union of balls around its feature vectors, each reaching its
    ``neighbours``-th nearest neighbour in the set. Precision is the share of ``fake`` on the
    manifold of ``real`` (are the samples realistic?), recall the share of ``real`` on that of
    ``fake`` (is everything covered?). Both depend on the counts.
    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative
    Models", NeurIPS 2019.

    Args:
        real: images (n, C, H, W) in [-1, 1], n above ``neighbours``.
        fake: images (m, C, H, W) in [-1, 1], m above ``neighbours``.
        extractor: what turns images into feature vectors.
        neighbours: at least 1.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    _check_images(neighbours + 1, real=real, fake=fake)
    return _precision_recall(_features(real, extractor), _features(fake, extractor), neighbours)


def label_accuracy(images: Tensor, labels: Tensor, classifier: Classifier) -> float:
    """The share of images in which ``classifier`` sees the class that was asked for.

    Args:
        images: float32 (n, C, H, W) in [-1, 1], n at least 1.
        labels: int64 (n,) in 1 … k.
        classifier: of those classes.
    """
    _check_images(images=images)
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must have shape ({len(images)},), one per image, got {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 1 or high > classifier.classes:
        raise ValueError(f"labels must be from 1 to {classifier.classes}, got {low} to {high}")
    predicted = classifier.predict(images).to(labels.device)
    return float((predicted == labels).double().mean())


@torch.no_grad()
def nearest_distances(images: Tensor, reference: Tensor) -> Tensor:
    """The L2 pixel distance of each image to the nearest reference image.

    Args:
        images: (n, C, H, W) in [-1, 1], n at least 1.
        reference: (m, C, H, W) in [-1, 1], m at least 1.

    Returns:
        float32 (n,), on the device of ``images``; exactly 0 for an image that is in ``reference``.
    """
    _check_images(images=images, reference=reference)
    reference = reference.to(images.device).flatten(1)
    parts = []
    for x in torch.split(images.flatten(1).double(), 500):
        nearest = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
        for block in torch.split(reference, 5000):
            index = torch.cdist(x, block.double()).argmin(1)
            # cdist's matrix product leaves a rounding error that hides exact copies.
            nearest = nearest.minimum((x - block[index].double()).norm(dim=1))
        parts.append(nearest.float())
    return torch.cat(parts)


@dataclass(frozen=True)
class CopyingCheck:
    """How close samples are to the training images, next to images the model never saw.

    Distances are those of ``nearest_distances`` to the training images.

    Attributes:
        samples_median: median distance of the samples.
        held_out_median: median distance of the held-out images.
        ratio: samples_median / held_out_median.
        threshold: 1st percentile of the held-out images' distances.
        share: the share of samples at ``threshold`` or closer.
    """

    samples_median: float
    held_out_median: float
    ratio: float
    threshold: float
    share: float

    @property
    def copied(self) -> bool:
        """Whether more than 5 % of the samples are closer than 99 % of the held-out images are.

        Samples of a perfect model are distributed as the held-out images, so about 1 % of them are
        that close, and the median would miss a model that copies only now and then. By chance a
        perfect model fails with probability 0.001 for 359 samples and as many held-out images,
        0.015 for 180 and 0.06 for 100. Not every failure is a copy: a model that smooths, or
        prefers typical images, moves towards the training images too, so look at the closest
        pairs.
        """
        return self.share > 0.05


def copying_check(samples: Tensor, train: Tensor, held_out: Tensor) -> CopyingCheck:
    """Tells samples from copies of training images, by their pixels.

    Args:
        samples: (n, C, H, W) in [-1, 1]; some 300 or more, see ``CopyingCheck.copied``.
        train: the images the model was trained on.
        held_out: images from the same source that it was not trained on, without duplicates of
            training images; some 300 or more.

    Raises:
        ValueError: besides the above, half of the held-out images are training images.
    """
    _check_images(samples=samples, train=train, held_out=held_out)
    own = nearest_distances(samples, train)
    other = nearest_distances(held_out, train).to(own.device)
    samples_median, held_out_median = float(own.quantile(0.5)), float(other.quantile(0.5))
    if held_out_median == 0:
        raise ValueError("held_out must not consist of training images: its median distance is 0")
    threshold = other.quantile(0.01)
    return CopyingCheck(
        samples_median,
        held_out_median,
        samples_median / held_out_median,
        float(threshold),
        float((own <= threshold).double().mean()),
    )


def evaluate_images(
    samples: Tensor, train: Tensor, held_out: Tensor, classifier: Classifier
) -> dict[str, float]:
    """All figures about a set of image samples that need no labels.

    The Fréchet distance is biased upwards, the more so the fewer images enter. ``frechet`` and
    ``frechet_noise`` take all samples and all training images, ``frechet_floor`` all held-out and
    all training images: 359 and 1,438 on digits split 80:20, which is what a perfect model would
    get with 359 samples. Only with as many samples as held-out images are the two fairly
    compared; more samples can get below the floor. The counts are part of the result.

    Args:
        samples: float32 (n, C, H, W) in [-1, 1], at least 6.
        train: the images that ``samples`` should look like, at least 6.
        held_out: images from the same source that no model saw, at least 2.
        classifier: its features are compared; it may be trained on ``train``.

    Returns:
        ``frechet`` (samples), ``frechet_floor`` (held_out) and ``frechet_noise`` (standard normal
        noise clipped to [-1, 1]), each against train; ``precision`` and ``recall`` with 5
        neighbours, train being real; ``copying_*``, the attributes of ``CopyingCheck``, and
        ``copied``, 0 or 1; ``samples_count``, ``train_count`` and ``held_out_count``.
    """
    _check_images(6, samples=samples, train=train)
    _check_images(2, held_out=held_out, train=train)
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0)).clamp_(-1, 1)
    real, fake, other, random = (
        _features(x, classifier) for x in (train, samples, held_out, noise)
    )
    precision, recall = _precision_recall(real, fake, 5)
    check = copying_check(samples, train, held_out)
    return {
        "frechet": _frechet(real, fake),
        "frechet_floor": _frechet(real, other),
        "frechet_noise": _frechet(real, random),
        "precision": precision,
        "recall": recall,
        **{f"copying_{name}": value for name, value in asdict(check).items()},
        "copied": float(check.copied),
        "samples_count": float(len(samples)),
        "train_count": float(len(train)),
        "held_out_count": float(len(held_out)),
    }


def inception_fid(real: Tensor, fake: Tensor, *, weights: Path | None = None) -> float:
    """The usual FID: ``frechet_distance`` in the 2048 pooled features of Inception v3.

    Grey images are repeated over three channels, pixels rounded to 8 bits and resized as in the
    original TensorFlow network. Nothing is downloaded. Published values use 50,000 samples.

    Args:
        real: images (n, C, H, W) in [-1, 1], C 1 or 3, n at least 2, better above 2048.
        fake: images (m, C, H, W) in [-1, 1], of the same shape.
        weights: torch-fidelity's file of weights; None looks for it where PyTorch keeps
            downloads, ``torch.hub.get_dir()/checkpoints``.

    Raises:
        ImportError: torchmetrics or torch-fidelity is not installed.
        CheckpointError: the weights are missing or cannot be loaded.
    """
    _check_images(2, real=real, fake=fake)
    if real.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {real.shape[1]}")
    _package("torch_fidelity", "torch-fidelity", "inception")
    network = _inception(weights or Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_WEIGHTS)
    return _frechet(_features(real, network, 50), _features(fake, network, 50))


def _inception(weights: Path) -> _Inception:
    if not weights.is_file():
        raise CheckpointError(
            f"{weights}: no Inception weights there, and they are not downloaded unasked; get "
            f"{_INCEPTION_WEIGHTS} from the releases of github.com/toshas/torch-fidelity and pass "
            "weights="
        )
    fid = _package("torchmetrics.image.fid", "torchmetrics", "inception")
    try:
        # torch-fidelity unpickles anything; a file that passes here holds only tensors.
        torch.load(weights, map_location="cpu", weights_only=True)
        network = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
    except Exception as error:  # a damaged archive makes the reader raise almost anything
        raise CheckpointError(f"{weights}: not Inception weights ({error})") from error
    # Only the resizing without antialiasing gives the values of the original.
    network.use_antialias = False
    return _Inception(network)


class _Inception:
    """The Inception network as a feature extractor for images in [-1, 1]."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def features(self, images: Tensor) -> Tensor:
        levels = images.add(1).mul(127.5).round().clamp(0, 255).to("cpu", torch.uint8)
        features: Tensor = self.network(levels.expand(-1, 3, -1, -1))
        return features


def checkerboard_shares(points: NDArray[Any]) -> tuple[float, NDArray[np.float64]]:
    """How points spread over the eight squares of ``cdrl_fast.data.checkerboard``.

    Args:
        points: real numbers of shape (n, 2), n at least 1.

    Returns:
        The share of points in any of the squares (1 for the data), and float64 (8,): how the
        points inside divide over the squares (1/8 each for the data; zeros if none is inside).

    Raises:
        ValueError: ``points`` is empty or does not have shape (n, 2).
    """
    square = in_checkerboard(points)
    if not len(square):
        raise ValueError("points must hold at least one point")
    counts = np.bincount(square[square >= 0], minlength=8)
    return float((square >= 0).mean()), counts / max(1, int(counts.sum()))
