"""A promise, and what is behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Row"]


class Row(NamedTuple):
    """A promise.

    Attributes:
      id: such as CK-01.
      promise: one sentence.
      run: campaign (count, seed) -> {"count", "failures", further figures}; "of" says how many
        trials there are in all. None has tests alone.
      tests: node ids of pytest.
      nightly: trials in the nightly tier; None runs `release` of them.
      release: trials in the release tier; None runs `nightly` of them.
    """

    id: str
    promise: str
    run: Callable[[int, int], dict] | None = None
    tests: tuple[str, ...] = ()
    nightly: int | None = None
    release: int | None = None

    def trials(self, tier: str) -> int:
        """How many trials a tier makes."""
        found = self.release if tier == "release" else self.nightly
        return found or self.nightly or self.release or 1
