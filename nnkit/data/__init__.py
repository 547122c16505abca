"""Data as a pure function of (seed, batch number): arrays, TFDS, folders, tables, small real sets.

Every source gives a `Batches`: fixed shapes, a mask for the ragged end, each example once per
epoch, and a position that is one integer.
"""

from nnkit.data.ahead import prefetch, stack
from nnkit.data.arrays import arrays
from nnkit.data.batches import Batches, Grouped
from nnkit.data.embedded import embedded
from nnkit.data.folder import folder
from nnkit.data.generated import generated
from nnkit.data.scaling import standardise
from nnkit.data.table import table
from nnkit.data.tfds import tfds
from nnkit.data.windows import windows
from nnkit.data.words import Vocabulary, split_words

__all__ = [
    "Batches",
    "Grouped",
    "Vocabulary",
    "arrays",
    "embedded",
    "folder",
    "generated",
    "prefetch",
    "split_words",
    "stack",
    "standardise",
    "table",
    "tfds",
    "windows",
]
