"""Data as a pure function of (seed, batch number): arrays, TFDS, folders, tables, small real sets.

Every source gives a `Batches`: fixed shapes, a mask for the ragged end, each example once per
epoch, and a position that is one integer.
"""

from nnkit.data.ahead import prefetch, stack
from nnkit.data.arrays import arrays
from nnkit.data.batches import Batches, Grouped
from nnkit.data.embedded import embedded
from nnkit.data.folder import folder
from nnkit.data.scaling import standardise
from nnkit.data.table import table
from nnkit.data.tfds import tfds

__all__ = [
    "Batches",
    "Grouped",
    "arrays",
    "embedded",
    "folder",
    "prefetch",
    "stack",
    "standardise",
    "table",
    "tfds",
]
