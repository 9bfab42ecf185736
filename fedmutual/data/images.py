"""One image file as a person sees it: upright, on white where it is transparent, all of its bits counted."""

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmutual.data.parts import readable
from fedmutual.data.pixels import Seen, scaled
from fedmutual.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MOST_PIXELS = 89_478_485
"""Of an image: Pillow's own limit, above which a small file may unpack to more memory than there is."""

_FORMATS = ("BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, whatever a file is called. Pillow knows more, of which some start other programs."""

GROUND = 255
"""What shows through where an image is transparent: white, as on a page."""

DEEP_GROUND = 65535
"""The same of an image of 16 bits."""

_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
_DEEP_FORMATS = ("PNG", "PPM")
"""Formats that have no more than 16 bits, so that Pillow's mode for 32 holds numbers up to 65535."""

_ORIENTATION = 0x0112
"""EXIF's tag of how an image is turned; from 5 on its sides are swapped."""

_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")


def image_shape(path: Path) -> tuple[int, ...]:
    """(1 or 3, height, width) of an image as it is seen."""
    pixels = _pixels(path, Seen())
    return (1 if pixels.ndim == 2 else 3, *pixels.shape[:2])


def header_shape(path: Path) -> tuple[int, ...]:
    """As `image_shape`, from what the file says of itself: the pixels are not read."""
    with _opened(path) as file:
        grey = file.mode in ("1", "L", "LA", "La", "I", "F") or file.mode.startswith("I;")
        turned = file.getexif().get(_ORIENTATION, 1) >= 5
        width, height = reversed(file.size) if turned else file.size
        return (1 if grey else 3, height, width)


def middle(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the largest square in the middle of an image."""
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def read_image(path: Path, shape: tuple[int, ...], resize: bool, cut: bool, seen: Seen) -> Tensor:
    """One image as float32 `[C, H, W]`; resized to `shape` (bicubic, antialiased), else it must have it.

    With `cut` its `middle` is resized, which keeps proportions.

    Raises:
        UserError: no whole image, one of another shape, or values out of range.
    """
    channels, height, width = shape
    pixels = _pixels(path, seen)
    if cut:
        pixels = pixels[middle(*pixels.shape[:2])]
    own = (1 if pixels.ndim == 2 else 3, *pixels.shape[:2])
    if own != shape and not resize:
        raise UserError(f"{path} is {own}, the first image {shape}: set shape to bring all to one size")
    with readable(f"{path} cannot be resized", "replace or remove it"):
        pixels = _fitted(pixels, channels, height, width)
    return scaled(pixels, str(path), seen).movedim(-1, 0).contiguous()


@contextmanager
def _opened(path: Path) -> "Iterator[ImageFile]":
    """The image file at `path`, of which the head is read.

    Raises:
        UserError: it is no whole image, or has more than `MOST_PIXELS`; also for what fails inside the block.
    """
    from PIL import Image

    Image.init()
    with readable(f"{path} is not a whole image", "replace or remove it"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is a pipe or a device, not a file: remove it")  # it might never end
        try:
            opened = Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN])
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise UserError(
                f"{path} has more than {MOST_PIXELS // 10**6} million pixels: make it smaller, or cut it into parts"
            ) from None
        with opened as file:
            yield file


def _pixels(path: Path, seen: Seen) -> NDArray[Any]:
    """`[H, W]` of a grey image, as bytes, 16-bit numbers or floats, or `[H, W, 3]` bytes of one in colour."""
    from PIL import ImageOps

    with _opened(path) as file:
        if getattr(file, "n_frames", 1) > 1:
            seen.paged.add(str(path))
        file.load()  # a damaged image raises here, and what it says of itself is complete
        image = ImageOps.exif_transpose(file)
        if image.mode in _DEEP or (image.mode == "I" and file.format in _DEEP_FORMATS):
            deep = np.asarray(image).astype(np.uint16)
            deep[deep == image.info.get("transparency")] = DEEP_GROUND
            return deep
        if image.mode == "I":
            raise UserError(f"{path} has 32 bits a pixel, whose range is not known: convert it to 8 or 16 bits")
        if image.mode == "F":
            return np.asarray(image)
        if image.mode in _TRANSPARENT or "transparency" in image.info:
            image = _on_ground(image)
        elif image.mode == "1":
            image = image.convert("L")
        return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))


def _on_ground(image: "Image") -> "Image":
    """A transparent image laid on `GROUND`, grey where it is grey."""
    from PIL import Image

    grey = image.mode in ("1", "L", "LA", "La")
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, (GROUND, GROUND, GROUND, 255))
    return Image.alpha_composite(ground, layer).convert("L" if grey else "RGB")


def _fitted(pixels: NDArray[Any], channels: int, height: int, width: int) -> NDArray[Any]:
    """`[height, width, channels]` of the same type and within the same range."""
    from PIL import Image

    if pixels.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(pixels)).convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image).reshape(height, width, channels)
    if pixels.shape != (height, width):
        image = Image.fromarray(pixels.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
        resized = np.asarray(image).clip(pixels.min(), pixels.max())
        pixels = resized.round().astype(pixels.dtype) if pixels.dtype == np.uint16 else resized
    return np.repeat(pixels[..., None], channels, -1)
