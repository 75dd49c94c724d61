"""Data sets in memory or mapped: images as they are stored on disk, or points of the plane.

``load_data`` reads a data set from a one-line description such as ``digits`` or
``folder:photos``; ``Dataset.batch`` hands out the scaled tensors that a model trains on. A data
file cannot run code: pickles, where a format is one, may hold arrays, lists and numbers alone.
"""

from cdrl_fast.data.dataset import Dataset
from cdrl_fast.data.points import checkerboard, in_checkerboard
from cdrl_fast.data.readers import load_data

__all__ = ["Dataset", "checkerboard", "in_checkerboard", "load_data"]
