"""The progress bar of chains."""

from __future__ import annotations


class Advance:
    """Advances a progress bar by one Langevin step; without one does nothing."""

    def __init__(self, show: bool, total: int) -> None:
        self._bar = None
        if show:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, desc="sampling", unit="step")

    def __call__(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def __enter__(self) -> Advance:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
