"""The SHA-256 that safetensors files written here carry, and what it says of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nnkit.core.documents import document
from nnkit.interop import files

__all__ = ["damage", "digested", "verify"]


def verify(path) -> list[str]:
    """What is wrong with a safetensors file, or with a folder of weights; needs no model.

    Args:
      path: a file, or a folder with `model.safetensors` or shards and their index, and with what
        `nk.interop.serving.export` writes beside.

    Returns:
      One sentence per problem: its form, and its SHA-256 if it has one (`digested`). [] if none.

    Raises:
      FileNotFoundError: if there are no weights at the path.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> ones = files.Wanted("w", np.dtype("int8"), (2,), lambda: np.ones(2, np.int8))
    >>> _ = files.write(file.parent, [ones])
    >>> verify(file), digested(file)
    ([], True)
    >>> _ = file.write_bytes(file.read_bytes()[:-1] + bytes([5]))
    >>> print(*verify(file.parent))
    /.../model.safetensors has sha256 ..., the file itself says ...; download or copy the file again

    The safetensors format, huggingface.co/docs/safetensors.
    """
    path = Path(path)
    try:
        found = files.tensors(path).values() if path.is_dir() else files.headers(path).values()
        places = sorted({tensor.file for tensor in found}) if path.is_dir() else [path]
    except ValueError as error:
        return [str(error)]
    problems = [problem for file in places if (problem := damage(file))]
    return problems + (_program(path) if (path / "signature.json").is_file() else [])


def _program(folder: Path) -> list[str]:
    """What is wrong with the program of an exported model, by the digest in its signature."""
    try:
        signature = document(folder / "signature.json", limit=2**26)
    except ValueError as error:
        return [str(error)]
    said = signature.get("sha256") if isinstance(signature, dict) else None
    said = said.get("model.stablehlo") if isinstance(said, dict) else None
    if not isinstance(said, str):
        return []
    file = folder / "model.stablehlo"
    if not file.is_file():
        return [f"{file} is missing, expected the program that signature.json names; {files.AGAIN}"]
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found == said:
        return []
    return [f"{file} has sha256 {found:.12}, signature.json says {said:.12}; {files.AGAIN}"]


def digested(file) -> bool:
    """Whether a safetensors file has its SHA-256 in it, as those written here have.

    Args:
      file: its path; its form must be right.

    Returns:
      A bool.

    >>> digested("no-such-file")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: 'no-such-file'

    The safetensors format, huggingface.co/docs/safetensors.
    """
    return "sha256" in files.opened(file)[1]


def damage(file) -> str:
    """What the SHA-256 in a safetensors file says: "" if it is right, or if there is none.

    Args:
      file: its path.

    Returns:
      A sentence or "".

    Raises:
      ValueError: if the form of the file is wrong.

    >>> damage("no-such-file")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: 'no-such-file'

    The safetensors format, huggingface.co/docs/safetensors.
    """
    _, about, header = files.opened(file)
    said = about.get("sha256")
    if said is None:
        return ""
    total = hashlib.sha256(len(header).to_bytes(8, "little"))
    total.update(header.replace(said.encode(), files.ZEROS.encode(), 1))
    with open(file, "rb") as opened:
        opened.seek(8 + len(header))
        while block := opened.read(2**24):
            total.update(block)
    if total.hexdigest() == said:
        return ""
    return (
        f"{file} has sha256 {total.hexdigest():.12}, the file itself says {said:.12}; {files.AGAIN}"
    )
