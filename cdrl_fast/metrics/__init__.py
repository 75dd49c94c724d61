"""Metrics of sample quality that need no downloaded network.

Images are compared in the features of a small classifier that is trained on the same data (Fréchet
distance, precision and recall, label accuracy), and in pixels, to detect copies of training
images. Points in the plane are compared with the squares of the checkerboard. Images are
floating-point tensors of shape (n, C, H, W) in [-1, 1] throughout.

Unless stated otherwise, the functions raise TypeError for images that are not floating point,
ValueError for a wrong shape, too few images or values that are not finite, and ImportError if
scikit-learn or torchmetrics is not installed.
"""

from cdrl_fast.metrics.classifier import Classifier, train_classifier
from cdrl_fast.metrics.copying import CopyingCheck, copying_check, evaluate_images
from cdrl_fast.metrics.distances import (
    FeatureExtractor,
    checkerboard_shares,
    frechet_distance,
    label_accuracy,
    nearest_distances,
    precision_recall,
    sliced_wasserstein,
)
from cdrl_fast.metrics.inception import inception_fid
from cdrl_fast.metrics.outliers import GaussianBaseline, auroc

__all__ = [
    "Classifier",
    "CopyingCheck",
    "FeatureExtractor",
    "GaussianBaseline",
    "auroc",
    "checkerboard_shares",
    "copying_check",
    "evaluate_images",
    "frechet_distance",
    "inception_fid",
    "label_accuracy",
    "nearest_distances",
    "precision_recall",
    "sliced_wasserstein",
    "train_classifier",
]
