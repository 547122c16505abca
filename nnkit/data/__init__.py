"""Data as a pure function of (seed, batch number): arrays, TFDS, folders, tables, small real sets.

Every source gives a `Batches`: fixed shapes, a mask for the ragged end, each example once per
epoch, and a position that is one integer.
"""

from nnkit.data.ahead import prefetch, stack
from nnkit.data.arrays import arrays
from nnkit.data.batches import Batches
from nnkit.data.bpe import BPE, tokenizer
from nnkit.data.embedded import embedded
from nnkit.data.folder import folder
from nnkit.data.generated import generated
from nnkit.data.grouping import Grouped
from nnkit.data.packing import pack, pad
from nnkit.data.scaling import standardise
from nnkit.data.shares import Share
from nnkit.data.table import table
from nnkit.data.text import text
from nnkit.data.tfds import columns, tfds
from nnkit.data.tokenizers import Bytes, Characters, Tokenizer
from nnkit.data.windows import windows
from nnkit.data.words import Vocabulary, split_words
from nnkit.data.wrapped import Wrapped

__all__ = [
    "BPE",
    "Batches",
    "Bytes",
    "Characters",
    "Grouped",
    "Share",
    "Tokenizer",
    "Vocabulary",
    "Wrapped",
    "arrays",
    "columns",
    "embedded",
    "folder",
    "generated",
    "pack",
    "pad",
    "prefetch",
    "split_words",
    "stack",
    "standardise",
    "table",
    "text",
    "tfds",
    "tokenizer",
    "windows",
]
