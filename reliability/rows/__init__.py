"""The promises, by part: one row each, with the campaign or the tests behind it."""

from __future__ import annotations

from reliability.rows import (
    checkpoints,
    compiles,
    data,
    determinism,
    hosts,
    inputs,
    interrupts,
    numerics,
    security,
)

__all__ = ["ROWS"]

_PARTS = (checkpoints, determinism, numerics, interrupts, compiles, inputs, data, security, hosts)
ROWS = tuple(row for part in _PARTS for row in part.ROWS)
