"""The safetensors format: headers and digests checked before anything is read, tensors one by one.

A file is 8 bytes (the length n of the header, little endian), n bytes of JSON {name: {"dtype",
"shape", "data_offsets"}}, then the data. Nothing in it can be executed; what can be wrong with it
(cut off, made to ask for much memory, names twice) is said before a tensor is read.

Files written here have in "__metadata__" the SHA-256 of the whole file, counted with 64 zeros in
its own place: one flipped bit anywhere is found. Files of others have none and are read all the
same; their form is checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from nnkit.core.documents import parsed

__all__ = ["Tensor", "bytes_of", "headers", "opened", "read", "tensors", "write"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST = 100_000_000  # bytes of a header: the limit of the format
SMALL = 2**21  # bytes of a header or an index that are always read; more take memory, see _most
ZEROS = "0" * 64
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
AGAIN = "download or copy the file again"


class Tensor(NamedTuple):
    """Where a tensor lies: the header's entry, checked.

    Attributes:
      file: the safetensors file.
      name: of the tensor.
      dtype: numpy's.
      shape: sizes.
      start: first byte in the file.

    >>> Tensor(Path("model.safetensors"), "w", np.dtype("float32"), (2, 3), 80).shape
    (2, 3)

    The safetensors format, huggingface.co/docs/safetensors.
    """

    file: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


def tensors(folder) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder by name, from the headers alone.

    Args:
      folder: with `model.safetensors`, or the files that `model.safetensors.index.json` names.

    Returns:
      {name: Tensor}.

    Raises:
      FileNotFoundError: if there is no such file, or a shard is missing.
      ValueError: if a header or the index is damaged, or the index names files elsewhere.

    >>> tensors("no-such-folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no-such-folder has no model.safetensors and no model.safetensors.index.j...

    The safetensors format, huggingface.co/docs/safetensors.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file() and (folder / SINGLE).is_file():
        raise ValueError(
            f"{folder} has both {SINGLE} and {INDEX}, expected one of them: delete the one that is "
            "left over"
        )
    if (folder / SINGLE).is_file():
        return headers(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(_absent(folder))
    return _sharded(folder)


def _absent(folder: Path) -> str:
    said = f"{folder} has no {SINGLE} and no {INDEX}"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in names if name.startswith("pytorch_model") and ".bin" in name]
    if pickles:
        return (
            f"{said}, only {pickles[0]}, a pickle, which can run any program when it is opened; "
            "convert it where you trust its origin: "
            "transformers.AutoModel.from_pretrained(folder).save_pretrained(new_folder)"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return f"{said}; it has {', '.join(others[:5])}: rename the file to {SINGLE}"
    return f"{said}; expected a folder as `save` of transformers or of nnkit writes it"


def _sharded(folder: Path) -> dict[str, Tensor]:
    where = folder / INDEX
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if where.stat().st_size > _most(size):
        raise ValueError(
            f"{where} has {where.stat().st_size:,} bytes, expected at most {_most(size):,} for "
            f"{size:,} bytes of weights; {AGAIN}"
        )
    index = _json(where.read_bytes(), where)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table:
        raise ValueError(f'{where} has no "weight_map" {{name: file}}, expected one; {AGAIN}')
    for name, file in table.items():
        plain = isinstance(file, str) and file == os.path.basename(file) and file not in ("", "..")
        if not plain or "\\" in file or "\0" in file or not file.endswith(".safetensors"):
            raise ValueError(
                f"{where}: tensor {name!r} is in {file!r:.80}, expected the name of a .safetensors "
                "file in the same folder; do not use a checkpoint that points elsewhere"
            )
    found: dict[str, Tensor] = {}
    for file in sorted(set(table.values())):
        if not (folder / file).is_file():
            lost = [name for name, there in table.items() if there == file]
            raise FileNotFoundError(
                f"{folder} lacks the shard {file}, which {INDEX} names for {lost[0]!r} and "
                f"{len(lost) - 1} more; copy or download it"
            )
        for name, tensor in headers(folder / file).items():
            if table.get(name) != file:
                said = f"in {table[name]}" if name in table else "nowhere"
                raise ValueError(
                    f"{folder / file} holds {name!r}, which {INDEX} has {said}; {AGAIN}"
                )
            found[name] = tensor
    lost = [name for name in table if name not in found]
    if lost:
        raise ValueError(
            f"{folder / table[lost[0]]} lacks {lost[0]!r}, which {INDEX} has there, and "
            f"{len(lost) - 1} more; {AGAIN}"
        )
    return found


def headers(file) -> dict[str, Tensor]:
    """The tensors of one safetensors file, every entry checked against the size of the file.

    Args:
      file: its path.

    Returns:
      {name: Tensor}.

    Raises:
      ValueError: naming file and tensor, if the file is cut off or longer than its header says, an
        entry is not what the format asks for, tensors overlap, or a name comes twice.

    >>> headers("no-such-file")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: 'no-such-file'

    The safetensors format, huggingface.co/docs/safetensors.
    """
    return opened(file)[0]


def _most(size: int) -> int:
    """How long a header may be in a file, or an index in a folder, of so many bytes.

    JSON takes up to thirty times its length in memory, and a small file must not take much.
    """
    return min(LONGEST, SMALL + size // 10)


def opened(file) -> tuple[dict[str, Tensor], dict[str, str], bytes]:
    """The tensors of one file as `headers` gives them, with the rest of the header.

    Args:
      file: its path.

    Returns:
      ({name: Tensor}, "__metadata__", the header as it is in the file).

    Raises:
      ValueError: as `headers`.

    >>> opened("no-such-file")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: 'no-such-file'

    The safetensors format, huggingface.co/docs/safetensors.
    """
    file = Path(file)
    if not stat.S_ISREG(os.stat(file).st_mode):  # opening a pipe would wait for ever
        raise ValueError(f"{file} is no plain file, expected safetensors; {AGAIN}")
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        first = stream.read(8)
        length = int.from_bytes(first, "little")
        if first == b"version ":
            raise ValueError(
                f"{file} is a pointer of Git LFS, not the weights themselves; run git lfs pull"
            )
        if size < 8 or length > size - 8:
            raise ValueError(
                f"{file} is cut off, or no safetensors file: {size:,} bytes, but its first eight "
                f"say that the header alone has {length:,}; {AGAIN}"
            )
        if length > _most(size):
            raise ValueError(
                f"{file}: the header has {length:,} bytes, expected at most {_most(size):,} in a "
                f"file of {size:,}; {AGAIN}"
            )
        header = stream.read(length)
    table = _json(header, file)
    if not isinstance(table, dict):
        raise ValueError(f"{file}: the header is no JSON object; {AGAIN}")
    about = table.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(x, str) for x in about.values()):
        raise ValueError(f"{file}: __metadata__ is {about!r:.60}, expected texts by name; {AGAIN}")
    rows = sorted((_entry(file, name, row) for name, row in table.items()), key=lambda row: row[:2])
    end = 0
    for start, stop, tensor in rows:
        if start != end:
            fault = "overlaps the tensor before it" if start < end else "leaves a hole before it"
            raise ValueError(
                f"{file}: {tensor.name!r} at bytes {start:,} to {stop:,} {fault}, which ends at "
                f"{end:,}; {AGAIN}"
            )
        end = stop
    if end != size - 8 - length:
        fault = "is cut off" if end > size - 8 - length else "is longer than its header says"
        last = rows[-1][2].name if rows else None
        raise ValueError(
            f"{file} {fault}: the data has {size - 8 - length:,} bytes, but {last!r} ends at byte "
            f"{end:,}; {AGAIN}"
        )
    found = {
        tensor.name: tensor._replace(start=8 + length + start) for start, _, tensor in sorted(rows)
    }
    return found, about, header


def _entry(file: Path, name: str, row) -> tuple[int, int, Tensor]:
    """(first byte, last byte, tensor) of an entry of the header."""
    said = f"{file}: tensor {name!r:.80}"
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{said} is {row!r:.60}, expected dtype, shape and data_offsets; {AGAIN}")
    code, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"{said} has dtype {code!r:.40}, expected one of {', '.join(DTYPES)}")
    whole = lambda xs: isinstance(xs, list) and all(type(x) is int and x >= 0 for x in xs)
    if not whole(shape) or not whole(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise ValueError(
            f"{said} has shape {shape!r:.60} and data_offsets {offsets!r:.60}, expected integers "
            f">= 0, two of them for data_offsets; {AGAIN}"
        )
    start, stop = offsets
    dtype = np.dtype(DTYPES[code])
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{said} is {code} of shape {shape!r:.60}, {math.prod(shape) * dtype.itemsize:,} bytes,"
            f" but its data_offsets {offsets} span {stop - start:,}; {AGAIN}"
        )
    return start, stop, Tensor(file, name, dtype, tuple(shape), 0)


def _json(text: bytes, file: Path):
    """Parsed JSON; a name that comes twice is an error."""
    try:
        return parsed(text)
    except ValueError as error:
        raise ValueError(f"{file} has damaged JSON: {error}; {AGAIN}") from None


def read(tensor: Tensor) -> np.ndarray:
    """One tensor as an array [...] of its own memory, in the dtype of the file.

    Args:
      tensor: from `tensors`.

    Returns:
      [...] numpy array.

    Raises:
      ValueError: if the file has become shorter since its header was read.

    >>> read(Tensor(Path(__file__), "w", np.dtype("uint8"), (3,), 0)).tobytes()
    b'\"\"\"'

    The safetensors format, huggingface.co/docs/safetensors.
    """
    size = math.prod(tensor.shape) * tensor.dtype.itemsize
    buffer = np.empty((size,), np.uint8)
    with open(tensor.file, "rb", buffering=0) as file:
        file.seek(tensor.start)
        view, done = memoryview(buffer.data), 0
        while done < size:
            count = file.readinto(view[done:])
            if not count:
                raise ValueError(
                    f"{tensor.file} is cut off inside tensor {tensor.name!r}: {done:,} of {size:,} "
                    f"bytes; {AGAIN}"
                )
            done += count
    return buffer.view(tensor.dtype).reshape(tensor.shape)


class Wanted(NamedTuple):
    """A tensor to be written: its array [...] is made when its turn comes.

    >>> Wanted("w", np.dtype("float32"), (2,), lambda: np.zeros(2, np.float32)).shape
    (2,)
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(folder: Path, wanted: Iterable[Wanted], max_shard_size: int | str = "5GB") -> list[str]:
    """`model.safetensors`, or shards of it with their index, into an existing folder.

    Args:
      folder: where to.
      wanted: the tensors, in the order of the file.
      max_shard_size: bytes of a file, or "5GB", "200MB"; one tensor is never cut in two.

    Returns:
      The names of the files written.

    Raises:
      TypeError: if the format has no code for a dtype.
      ValueError: if the size is no size.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write(folder, [Wanted("w", np.dtype("int8"), (2,), lambda: np.ones(2, np.int8))])
    ['model.safetensors']
    >>> read(tensors(folder)["w"])
    array([1, 1], dtype=int8)

    The safetensors format, huggingface.co/docs/safetensors.
    """
    limit, shards, room = bytes_of(max_shard_size), [[]], 0
    for one in wanted:
        if one.dtype not in CODES:
            raise TypeError(
                f"{one.name} is {one.dtype}, which safetensors cannot hold; save with "
                'dtype="float32"'
            )
        room += one.size
        if shards[-1] and room > limit:
            shards.append([])
            room = one.size
        shards[-1].append(one)
    if len(shards) == 1:
        _write_one(folder / SINGLE, shards[0])
        return [SINGLE]
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards):
        _write_one(folder / name, shard)
    table = {one.name: name for name, shard in zip(names, shards) for one in shard}
    total = sum(one.size for shard in shards for one in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [*names, INDEX]


def _write_one(file: Path, wanted: list[Wanted]) -> None:
    wanted = sorted(wanted, key=lambda one: -one.dtype.itemsize)  # so that all are aligned
    table: dict[str, Any] = {"__metadata__": {"sha256": ZEROS, "format": "pt"}}  # digest first
    start = 0
    for one in wanted:
        offsets = [start, start + one.size]
        table[one.name] = {
            "dtype": CODES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": offsets,
        }
        start += one.size
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(file, "wb") as stream:
        begin = len(head).to_bytes(8, "little") + head
        total = hashlib.sha256(begin)
        stream.write(begin)
        for one in wanted:
            array = np.asarray(one.make())
            assert (array.dtype, array.shape) == (one.dtype, one.shape), one.name
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            total.update(data)
            stream.write(data)
        stream.seek(begin.index(ZEROS.encode()))
        stream.write(total.hexdigest().encode())


def bytes_of(size: int | str) -> int:
    """A number of bytes from "5GB", "200MB", "10KB" or a number.

    Args:
      size: as hub tools write it; powers of 1000.

    Returns:
      An integer >= 1.

    Raises:
      ValueError: if it is none of these.

    >>> bytes_of("5GB"), bytes_of(70)
    (5000000000, 70)

    The safetensors format, huggingface.co/docs/safetensors.
    """
    units = {"KB": 1000, "MB": 1000**2, "GB": 1000**3}
    number, factor = size, 1
    if isinstance(size, str):
        factor = units.get(size[-2:].upper(), 0)
        number = int(size[:-2]) if size[:-2].isdecimal() else 0
    if isinstance(number, bool) or not isinstance(number, int) or number * factor < 1:
        raise ValueError(
            f'max_shard_size is {size!r}, expected a number of bytes >= 1, or a text such as "5GB" '
            'or "200MB"'
        )
    return number * factor
