"""One picture file to one RGB picture: really decoded, upright, on a plain background."""

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

from hyperbrush.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


def background_colour(background: str) -> tuple[int, int, int]:
    """RGB, 0 to 255, of a colour name or a code such as ``#ff8800``.

    Raises:
        UserError: Pillow knows no such colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(background)[:3]
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"background is {background!r}; expected a colour such as 'white' or '#ff8800'"
        ) from error
    return red, green, blue


def decode(content: bytes, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Decode a picture file's bytes to RGB, turned as its EXIF says, transparency filled in.

    Of an animation, the first frame counts.

    Raises:
        Exception: whatever Pillow raises on a broken file; ``explain`` puts it in words.
    """
    return flatten(_upright(content), background)


def decode_alpha(content: bytes) -> Image.Image | None:
    """Opacity of a picture file's bytes as a grey picture (mode L), upright; None where it has none.

    Raises:
        Exception: as ``decode``.
    """
    return _alpha(_upright(content))


def flatten(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Any picture as RGB with 8 bits, transparency filled in.

    Raises:
        ValueError: its pixels are numbers without a range.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips everything above 255 to white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are numbers without a range (Pillow mode {image.mode}); save with 8 bits"
        )
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _upright(content: bytes) -> Image.Image:
    if not content:
        raise ValueError("the file is empty (0 bytes)")
    image: Image.Image = Image.open(io.BytesIO(content))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _alpha(image: Image.Image) -> Image.Image | None:
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


@dataclass(frozen=True)
class Look:
    """What one look at a picture tells: its size in pixels, upright, and whether one sees through it."""

    width: int
    height: int
    transparent: bool = False


def look(path: Path, small: int = 0) -> tuple[Look, Image.Image | None]:
    """Check a picture's bytes, decode all of it, and say what it is.

    small: above 0, the picture comes too, as RGB on white, its sides at most so many pixels; of a
        JPEG, only what that needs is computed.

    Raises:
        Exception: whatever Pillow or the disk raises; ``explain`` puts it in words.
    """
    content = path.read_bytes()
    if not content:
        raise ValueError("the file is empty (0 bytes)")
    # A PNG's checksums are looked at by verify alone, its pixels by load alone.
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        image.verify()
    picture: Image.Image = Image.open(io.BytesIO(content))
    if small:
        picture.draft(None, (small, small))  # a JPEG, still read to its last byte, at 1/2 to 1/8
    picture.load()
    if picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # it lies on its side
        width, height = height, width
    ImageOps.exif_transpose(picture, in_place=True)
    alpha = _alpha(picture)
    transparent = alpha is not None and alpha.getextrema()[0] != 255
    flat = flatten(picture)
    if not small:
        return Look(width, height, transparent), None
    flat.thumbnail((small, small), Image.Resampling.BOX, reducing_gap=None)
    return Look(width, height, transparent), flat


def check(path: Path) -> tuple[int, int]:
    """(width, height) of a picture, upright, after checking its bytes and decoding all of it.

    Raises:
        Exception: as ``look``.
    """
    found, _ = look(path)
    return found.width, found.height


def read(path: Path, background: tuple[int, int, int]) -> Image.Image:
    """Read one picture as RGB.

    Raises:
        UserError: it cannot be read (any more: a scan reads every picture before).
    """
    try:
        return decode(path.read_bytes(), background)
    except Exception as error:  # Pillow's decoders raise anything on a broken file
        raise UserError(f"cannot read the picture {path}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """Put in words why a picture cannot be read."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"it may be a decompression bomb: {error}"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture Pillow can read (damaged at its start, or another kind of file)"
    if isinstance(error, FileNotFoundError):
        return "the file is gone, or a link leads nowhere"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, struct.error | EOFError):
        return f"the file is truncated ({error})"
    return str(error) or type(error).__name__
