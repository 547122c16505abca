"""Image files and bytes as pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

__all__ = ["pixels"]

_LARGEST = 100_000_000  # pixels: a small file can ask for any number
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def pixels(image: Path | bytes, channels: int, side: tuple[int, ...] | None = None) -> np.ndarray:
    """An encoded image as uint8 pixels, upright, in the channels asked for.

    Args:
      image: a path, or the bytes of a PNG or JPEG.
      channels: 1, 3 or 4.
      side: (height, width) to resize to (bilinear); None keeps the size.

    Returns:
      [h w channels] uint8.

    Raises:
      ValueError: if the image cannot be read, or has more than 8 bits; names the file.

    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (3, 2), (255, 0, 0)).save(file, "PNG")
    >>> pixels(file.getvalue(), 3).shape, pixels(file.getvalue(), 1, side=(4, 4)).shape
    ((2, 3, 3), (4, 4, 1))
    """
    from PIL import Image, ImageOps

    name = "an image" if isinstance(image, bytes) else str(image)
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            picture = opened
            if opened.width * opened.height > _LARGEST:
                raise ValueError(f"it has {opened.width} x {opened.height} pixels, too many")
            if picture.mode[0] in "IF":
                raise ValueError(f"it has mode {picture.mode}, more than 8 bits")
            if side is not None:
                picture = ImageOps.exif_transpose(picture)
            if picture.mode != _MODES[channels]:
                picture = picture.convert(_MODES[channels])
            if side is not None and picture.size != (side[1], side[0]):
                picture = picture.resize((side[1], side[0]), Image.Resampling.BILINEAR)
            array = np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} cannot be read ({error}), expected an 8-bit PNG or JPEG; "
            "remove or convert the file"
        ) from error
    return array[:, :, None] if array.ndim == 2 else array
