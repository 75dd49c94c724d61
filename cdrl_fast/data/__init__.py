"""Data sets in memory or memory-mapped: images as they are stored on disk, or points in the plane.

``load_data`` reads a data set from a one-line description such as ``digits`` or
``folder:photos``; ``Dataset.batch`` returns the scaled tensors that a model trains on. Reading a
file never runs code from it: pickles may contain only arrays, lists, dictionaries and numbers.
"""

from cdrl_fast.data.dataset import Dataset
from cdrl_fast.data.points import checkerboard, in_checkerboard
from cdrl_fast.data.readers import load_data

__all__ = ["Dataset", "checkerboard", "in_checkerboard", "load_data"]
