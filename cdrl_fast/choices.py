"""Names that options take, in a module without torch, for the help of the command line."""

from typing import Literal

PrecisionName = Literal["auto", "fp64", "fp32", "tf32", "bf16", "fp16"]
ObservationNoise = Literal["shared", "fresh"]
