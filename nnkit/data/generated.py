"""Tasks whose examples are made when they are read: example i is a pure function of (seed, i)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from nnkit.core.keys import seed as checked_seed
from nnkit.data.batches import Batches

__all__ = ["Generated", "adding", "copying", "generated"]


def generated(
    task: str,
    *,
    batch_size: int,
    length: int,
    examples: int = 1_000_000,
    test: int = 1_000,
    seed: int = 0,
) -> tuple[Batches, Batches]:
    """A stream of fresh examples and a held-out test set: (train, test).

    No training example comes twice before the number of them is used up, none is a test example,
    and nothing is stored. See `adding` and `copying` for the tasks.

    Args:
      task: "adding" or "copying".
      batch_size: b; for the test part at most its size.
      length: t of "adding"; the blank time T of "copying", whose sequences have T + 20 steps.
      examples: of one epoch of the training part; steps * batch_size makes every example fresh.
      test: number of test examples.
      seed: 0 to 2**32 - 1; decides all examples, of both parts.

    Returns:
      (train, test), two `Batches` of {"x", "y"}, in order.

    Raises:
      ValueError: for another task, a length that is too short, or a number that is not >= 1.

    >>> train, test = generated("adding", batch_size=32, length=100)
    >>> train.spec["x"].shape, test.examples
    ((32, 100, 2), 1000)

    Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735, experiments 2 and 4; in the form
    of Bai et al., arXiv:1803.01271, section 5.2.
    """
    makers = {"adding": adding, "copying": copying}
    if task not in makers:
        raise ValueError(f"task is {task!r}, expected one of {', '.join(makers)}")
    for name, n in {"examples": examples, "test": test}.items():
        if isinstance(n, bool) or not hasattr(type(n), "__index__") or n < 1:
            raise ValueError(f"{name} is {n!r}, expected an integer >= 1, such as 1000")
    seed = checked_seed(seed)
    parts = []
    for part, n in enumerate((examples, test)):
        # Two words are the key of an example: the number, and the seed with the part above it.
        source = Generated(makers[task], n, length, seed + (part << 32))
        size = min(batch_size, n) if part else batch_size
        name = f"{task} {('train', 'test')[part]}"
        parts.append(Batches(source, size, shuffle=False, seed=seed, name=name))
    return parts[0], parts[1]


@dataclasses.dataclass(frozen=True)
class Generated:
    """A source whose examples are computed from their numbers.

    Attributes:
      make: (bits, length) -> one example, a dict of arrays; bits(n) gives [n] random uint64.
      count: how many examples there are.
      length: of the sequences.
      seed: 0 to 2**64 - 1.

    >>> source = Generated(adding, 10, 5, seed=0)
    >>> a, b = source.take(np.array([7, 3])), source.take(np.array([3]))
    >>> bool((a["x"][1] == b["x"][0]).all())
    True

    Salmon et al. 2011, doi:10.1145/2063384.2063405 (Philox: bits as a function of a counter).
    """

    make: Callable
    count: int
    length: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples [i ...] of these numbers."""
        found = [self.make(self._bits(int(i)), self.length) for i in indices]
        return {name: np.stack([one[name] for one in found]) for name in found[0]}

    def _bits(self, i: int) -> Callable[[int], np.ndarray]:
        """The bits of example i: raw ones, which are the same in every version of numpy."""
        return np.random.Philox(key=np.array([i, self.seed], np.uint64)).random_raw


def adding(bits: Callable[[int], np.ndarray], length: int) -> dict[str, np.ndarray]:
    """One example of the adding task: the sum of the two numbers that are marked.

    x = (u_t, m_t), u_t uniform in [0, 1), m_t = 1 at two places, any two with equal chance, and 0
    elsewhere; y = sum_t u_t m_t. Always saying 1 has an error of 2/12 = 0.1667 in the mean square.

    Args:
      bits: n -> [n] random uint64.
      length: t, at least 2.

    Returns:
      {"x": [t 2] float32, "y": [] float32}.

    Raises:
      ValueError: if the length is below 2.

    >>> one = adding(np.random.Philox(0).random_raw, 6)
    >>> one["x"].shape, one["x"][:, 1].sum(), bool(one["x"].prod(1).sum() == one["y"])
    ((6, 2), np.float32(2.0), True)

    Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735, experiment 4; this form: Le et
    al., arXiv:1504.00941, section 4.1, with the places of Bai et al., arXiv:1803.01271.
    """
    _long("adding", length, 2)
    raw = bits(length + 2)
    x = np.zeros((length, 2), np.float32)
    x[:, 0] = (raw[:length] >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    first = int(raw[length] % np.uint64(length))
    second = int(raw[length + 1] % np.uint64(length - 1))
    second += second >= first
    x[[first, second], 1] = 1
    return {"x": x, "y": x[first, 0] + x[second, 0]}


def copying(bits: Callable[[int], np.ndarray], length: int) -> dict[str, np.ndarray]:
    """One example of the copying task: ten symbols, a blank time T, then the ten from memory.

    x is ten symbols out of 1 to 8, T - 1 zeros, then eleven nines; y is T + 10 zeros, then the ten
    symbols. Without memory the best mean cross-entropy over all steps is 10 ln 8 / (T + 20).

    Args:
      bits: n -> [n] random uint64.
      length: T, the blank time, at least 1.

    Returns:
      {"x": [T+20] int32 of 0 to 9, "y": [T+20] int32 of 0 to 8}.

    Raises:
      ValueError: if the length is below 1.

    >>> one = copying(np.random.Philox(0).random_raw, 3)
    >>> one["x"].shape, bool((one["x"][:10] == one["y"][-10:]).all()), one["x"][10:].tolist()
    ((23,), True, [0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9])

    Arjovsky et al., arXiv:1511.06464, section 4.1, in the layout of Bai et al., arXiv:1803.01271.
    """
    _long("copying", length, 1)
    symbols = 1 + (bits(10) % np.uint64(8)).astype(np.int32)
    x = np.concatenate([symbols, np.zeros(length - 1, np.int32), np.full(11, 9, np.int32)])
    y = np.concatenate([np.zeros(length + 10, np.int32), symbols])
    return {"x": x, "y": y}


def _long(task: str, length, least: int) -> None:
    if isinstance(length, bool) or not hasattr(type(length), "__index__") or length < least:
        raise ValueError(f"length is {length!r}, expected an integer >= {least} for {task}")
