"""What can go wrong, by name.

Wrong arguments raise the builtin ``ValueError`` or ``TypeError``; the classes here are for what a
caller may want to catch on its own. Every message says which argument or file, what was expected,
what came and what to do.
"""


class CDRLError(Exception):
    """Base of the errors that only this library raises.

    Examples:
        >>> from cdrl_fast import CDRL, CDRLError
        >>> try:
        ...     CDRL.from_pretrained("./nowhere")
        ... except CDRLError as error:
        ...     print(type(error).__name__)
        CheckpointError
    """


class BackendUnavailable(CDRLError, RuntimeError):
    """An explicit ``backend=``, ``graph=`` or ``precision=`` cannot be had here.

    Also a RuntimeError. `about` says what can be had, and why not the rest.
    """


class ChainDiverged(CDRLError, ArithmeticError):
    """A chain left the finite numbers; shorter steps may help.

    Also an ArithmeticError.

    Attributes:
        level: the noise level ``t`` at which it happened, or None outside a diffusion model.
        step: the Langevin step within the level, from 1; in `langevin` counted from 0.
        sample: the index of the first sample concerned in the seed's stream.
    """

    def __init__(self, message: str, *, level: int | None, step: int, sample: int) -> None:
        super().__init__(message)
        self.level = level
        self.step = step
        self.sample = sample


class TrainingDiverged(CDRLError, ArithmeticError):
    """Training leaves the finite numbers, and going back to a checkpoint does not cure it.

    Also an ArithmeticError. Raised by `Trainer.fit`, with what was tried.
    """


class CheckpointError(CDRLError, ValueError):
    """A checkpoint is missing, corrupt, or not what it is said to be; also a ValueError."""


class DataError(CDRLError, ValueError):
    """A data file is missing, truncated, empty or mis-shaped; also a ValueError."""
