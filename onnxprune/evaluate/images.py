"""Image files: encoded as they lie on disk or in a table, decoded one by one where they are needed."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from onnxprune.errors import DataError

_MOST_THREADS = 8
_OPENING = Lock()
"""Headers are read one at a time: filters of warnings are those of the whole process."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class EncodedImage:
    """An image file, or its bytes; ``name`` is what errors call it."""

    data: bytes | Path
    name: str

    def decode(self) -> Image.Image:
        """The image, in its own size and mode.

        Raises a DataError naming it where it is none, broken, absurdly large, or of 32-bit pixels.
        """
        try:
            with _OPENING, warnings.catch_warnings():
                # Pillow warns on stderr at half the size at which it refuses.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                opened = Image.open(io.BytesIO(self.data) if isinstance(self.data, bytes) else self.data)
            opened.load()
        except FileNotFoundError as error:
            raise DataError(
                f"no such image: {self.name}", hint="the file is gone, or a link that leads nowhere"
            ) from error
        except Image.DecompressionBombError as error:
            raise DataError(
                f"image {self.name} is too large to decode safely", hint="scale it down or remove it"
            ) from error
        except UnidentifiedImageError as error:
            raise DataError(
                f"{self.name} is not an image that can be read", hint="remove or replace the file"
            ) from error
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"image {self.name} can't be decoded: {error}",
                hint="it may be cut short: remove or replace the file",
            ) from error
        of_16_bits = opened.mode == "I" and opened.format in ("PNG", "PPM")  # Pillow has no mode for them
        image = opened.convert("I;16") if of_16_bits else opened
        if image.mode in ("I", "F"):  # Pillow's conversion would clip them at 255
            raise DataError(
                f"image {self.name} opens with 32-bit pixels, whose range is unknown",
                hint="convert it to a PNG of 8 or 16 bits",
            )
        return image


def in_threads(
    function: Callable[[EncodedImage], Result], images: Sequence[EncodedImage], threads: int | None
) -> list[Result]:
    """``function`` of every image, in order, in ``threads`` threads (None: one a core, 8 at most).

    Decoding and resizing leave the interpreter free, and no more than one image a thread is held decoded.
    The first image whose function raises decides the error.
    """
    count = min(threads or min(_cores(), _MOST_THREADS), len(images))
    if count <= 1:
        return [function(image) for image in images]
    with ThreadPoolExecutor(count, thread_name_prefix="onnxprune-images") as pool:
        return list(pool.map(function, images))


def _cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
