"""Data sets in memory: images as they are stored on disk, or points of the plane.

``load_data`` reads a data set from a one-line description such as ``digits`` or
``folder:photos``; ``Dataset.batch`` hands out the scaled tensors that a model trains on. Nothing
here unpickles anything, so a data file cannot run code.
"""

from cdrl_fast.data.dataset import Dataset
from cdrl_fast.data.points import checkerboard, in_checkerboard
from cdrl_fast.data.readers import load_data

__all__ = ["Dataset", "checkerboard", "in_checkerboard", "load_data"]
