"""Values of options, apart from torch, which the help of the command line does not load."""

from typing import Literal

PrecisionName = Literal["auto", "fp64", "fp32", "tf32", "bf16", "fp16"]
ObservationNoise = Literal["shared", "fresh"]
