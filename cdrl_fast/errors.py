"""Exceptions of the library.

Wrong arguments raise the builtin ``ValueError`` or ``TypeError``; a class here is for an error that
a caller may want to catch separately. Every message names the argument or file, what was expected,
what came and what to do.
"""


class CDRLError(Exception):
    """Base class of the library's own errors.

    Examples:
        >>> from cdrl_fast import CDRL, CDRLError
        >>> try:
        ...     CDRL.from_pretrained("./nowhere")
        ... except CDRLError as error:
        ...     print(type(error).__name__)
        CheckpointError
    """


class BackendUnavailable(CDRLError, RuntimeError):
    """An explicit ``backend=``, ``graph=`` or ``precision=`` is not available on this machine.

    Also a RuntimeError. `about` lists the backends of every operation, with the reason why one
    cannot be used.
    """


class ChainDiverged(CDRLError, ArithmeticError):
    """A chain became non-finite (NaN or Inf); smaller steps may help.

    Also an ArithmeticError.

    Attributes:
        level: the noise level ``t`` of the step, or None outside a diffusion model.
        step: the Langevin step within the level, counted from 1; in `langevin` counted from 0.
        sample: the index of the first non-finite sample in the noise stream of the seed.
    """

    def __init__(self, message: str, *, level: int | None, step: int, sample: int) -> None:
        super().__init__(message)
        self.level = level
        self.step = step
        self.sample = sample


class TrainingDiverged(CDRLError, ArithmeticError):
    """Training became non-finite (NaN or Inf) again after it went back to earlier checkpoints.

    Also an ArithmeticError. Raised by `Trainer.fit`; the message lists what was tried.
    """


class CheckpointError(CDRLError, ValueError):
    """A checkpoint is missing, corrupt or of another format.

    Also a ValueError.
    """


class DataError(CDRLError, ValueError):
    """A data file is missing, truncated, empty or of the wrong shape.

    Also a ValueError.
    """


def check_integer(operation: str, name: str, value: object, low: int, high: int) -> None:
    """Raise TypeError or ValueError unless ``value`` is an integer in [low, high)."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{operation}: {name} must be an integer, got {value!r}")
    if not low <= value.__index__() < high:
        raise ValueError(f"{operation}: {name} must be in [{low}, {high}), got {value}")
