"""One picture file to one RGB picture: really decoded, upright, on a plain background."""

import functools
import io
import struct
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

from hyperbrush.errors import UserError
from hyperbrush.ldm.data.archives import content_of

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".tga", ".ico", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# Those that an extra reads: suffix → (name, module that reads them).
EXTRA = {
    ".heic": ("HEIC", "pillow_heif"),
    ".heif": ("HEIC", "pillow_heif"),
    ".hif": ("HEIC", "pillow_heif"),
    ".jxl": ("JPEG XL", "pillow_jxl"),
}
INSTALL = "pip install 'hyperbrush[pictures]'"
# Pillow's names of the formats of these suffixes (a photograph with two JPEGs inside is MPO to it), and the suffix of each.
FORMATS = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tiff",
    "AVIF": ".avif",
    "JPEG2000": ".jp2",
    "ICO": ".ico",
    "PPM": ".ppm",
    "TGA": ".tga",
    "HEIF": ".heic",
    "JXL": ".jxl",
}


def suffixes() -> tuple[str, ...]:
    """Endings of the files that are read here and now: `SUFFIXES`, and those of extras that are installed."""
    return SUFFIXES + tuple(suffix for suffix, (_, module) in EXTRA.items() if _installed(module))


def why_unread(path: Path, content: bytes) -> str:
    """Why a file whose name does not end in one of `suffixes` is not read.

    content: its first bytes, a few thousand at least.
    """
    suffix = path.suffix.lower()
    if suffix in EXTRA:
        return f"{EXTRA[suffix][0]} is read with an extra: {INSTALL}"
    if suffix in (".gz", ".tgz", ".bz2", ".xz", ".zip", ".7z", ".rar"):
        return "of archives plain .tar files alone are read; unpack it"
    kind = _kind(content)
    if kind in FORMATS:
        return f"it holds a {kind} picture, but is not named as one: give its name the ending {FORMATS[kind]}"
    ending = f"{suffix} files are" if suffix else "a file without an ending is"
    return f"{ending} not read; if it is a picture, save it as PNG, JPEG or WebP"


@functools.cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None


@functools.cache
def _register_extras() -> None:
    """Let Pillow read what extras read; they are loaded when the first file asks for one."""
    if _installed("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    if _installed("pillow_jxl"):
        import_module("pillow_jxl")


def _kind(content: bytes) -> str:
    """Pillow's name of what bytes begin, by marks that nothing else has; "" for anything else."""
    if extra := _kind_of_extra(content):
        return extra
    # These two cannot be opened by their first bytes.
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    if content[4:12] == b"ftypavif":
        return "AVIF"
    try:
        with Image.open(io.BytesIO(content), formats=_SURE) as image:
            return str(image.format)
    except Exception:  # noqa: BLE001 (Pillow's decoders raise anything)
        return ""


_SURE = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "JPEG2000")


def _kind_of_extra(content: bytes) -> str:
    """HEIF or JXL, which extras read, by the first bytes; "" for anything else."""
    heic = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1")
    if content[4:8] == b"ftyp" and content[8:12] in heic and b"avif" not in content[:64]:
        return "HEIF"
    return "JXL" if content.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")) else ""


def open_bytes(content: bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    """`Image.open` of a file's bytes, with the extras; only its head is read yet.

    formats: as for ``upright``.

    Raises:
        Exception: as ``decode``.
    """
    if kind := _kind_of_extra(content):
        _register_extras()
        name, module = EXTRA[FORMATS[kind]]
        if not _installed(module):
            raise ValueError(f"it is a picture in {name}, which is read with an extra: {INSTALL}")
        formats = None if formats is None else tuple(f for f in formats if f == kind)
    elif formats is not None:
        # Names Pillow does not open by: those of extras that are not loaded, and what it finds in opening a JPEG.
        formats = tuple(f for f in formats if f not in ("HEIF", "JXL", "MPO"))
    return Image.open(io.BytesIO(content), formats=formats)


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
    return flatten(upright(content), background)


def decode_alpha(content: bytes) -> Image.Image | None:
    """Opacity of a picture file's bytes as a grey picture (mode L), upright; None where it has none.

    Raises:
        Exception: as ``decode``.
    """
    return _alpha(upright(content))


def upright(content: bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    """A picture file's first picture, decoded and turned as its EXIF says, its mode and texts kept.

    formats: Pillow's names of the formats that may be read; all of them where it is None.

    Raises:
        Exception: as ``decode``.
    """
    if not content:
        raise ValueError("the file is empty (0 bytes)")
    image = open_bytes(content, formats)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def eight_bits(image: Image.Image) -> Image.Image:
    """Any picture as RGB, RGBA, L or LA with 8 bits, turned as its EXIF says, transparency kept.

    Raises:
        ValueError: its pixels are numbers without a range, or have no colours on a screen.
    """
    # Pillow before 11.0 reads 16-bit PNG as mode I, and every Pillow 16-bit PGM.
    sixteen = image.mode.startswith("I;16") or (
        image.mode == "I" and getattr(image, "format", None) in ("PNG", "PPM")
    )
    image = ImageOps.exif_transpose(image)  # a copy: whoever asks may change it
    if sixteen:
        # Pillow's own conversion clips everything above 255 to white.
        deep = np.asarray(image)
        grey = Image.fromarray((deep >> 8).astype(np.uint8))
        hidden = image.info.get("transparency")
        if isinstance(hidden, int):
            grey.putalpha(Image.fromarray(np.where(deep == hidden, 0, 255).astype(np.uint8)))
        return grey
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are numbers without a range (Pillow mode {image.mode}); save with 8 bits"
        )
    if image.mode == "La":  # Pillow converts it to LA alone
        image = image.convert("LA")
    if image.has_transparency_data:
        return image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def flatten(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Any picture as RGB with 8 bits, turned as its EXIF says, transparency filled in.

    Raises:
        ValueError: as ``eight_bits``.
    """
    image = eight_bits(image)
    if image.mode in ("RGBA", "LA"):
        ground = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def brightness(image: Image.Image) -> Image.Image:
    """Any picture as a mask (mode L), turned as its EXIF says: white counts; black and transparent do not.

    Raises:
        ValueError: as ``eight_bits``.
    """
    return flatten(image, (0, 0, 0)).convert("L")


def _alpha(image: Image.Image) -> Image.Image | None:
    return eight_bits(image).getchannel("A") if image.has_transparency_data else None


@dataclass(frozen=True)
class Look:
    """What one look at a picture tells: its size in pixels, upright, and whether one sees through it."""

    width: int
    height: int
    transparent: bool = False


def lies_on_its_side(picture: Image.Image) -> bool:
    """Whether EXIF says that its width is its height."""
    return picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


def look(path: Path, small: int = 0) -> tuple[Look, Image.Image | None]:
    """Check a picture's bytes, decode all of it, and say what it is.

    small: above 0, the picture comes too, as RGB on white, its sides at most so many pixels; of a
        JPEG, only what that needs is computed.

    Raises:
        Exception: whatever Pillow or the disk raises; ``explain`` puts it in words.
    """
    return look_at(content_of(path), small)


def look_at(content: bytes, small: int = 0) -> tuple[Look, Image.Image | None]:
    """As ``look``, of a picture file's bytes."""
    if not content:
        raise ValueError("the file is empty (0 bytes)")
    # A PNG's checksums are looked at by verify alone, its pixels by load alone.
    with open_bytes(content) as image:
        width, height = image.size
        image.verify()
    picture = open_bytes(content)
    if small:
        picture.draft(None, (small, small))  # a JPEG, still read to its last byte, at 1/2 to 1/8
    picture.load()
    if lies_on_its_side(picture):
        width, height = height, width
    ImageOps.exif_transpose(picture, in_place=True)
    alpha = _alpha(picture)
    transparent = alpha is not None and alpha.getextrema()[0] != 255
    flat = flatten(picture)
    if not small:
        return Look(width, height, transparent), None
    flat.thumbnail((small, small), Image.Resampling.BOX, reducing_gap=None)
    return Look(width, height, transparent), flat


def read(path: Path, background: tuple[int, int, int]) -> Image.Image:
    """Read one picture as RGB.

    Raises:
        UserError: it cannot be read (any more: a scan reads every picture before).
    """
    try:
        return decode(content_of(path), background)
    except Exception as error:  # Pillow's decoders raise anything on a broken file
        raise UserError(f"cannot read the picture {path}: {explain(error)}") from error


def opened(picture: Image.Image | str | Path, what: str, *, mask: bool = False) -> Image.Image:
    """A picture in memory or in a file, as a person sees it: RGB on white; as a mask, L on black.

    what: what it is for, in the error.

    Raises:
        UserError: it is no picture, or cannot be read.
    """
    if not isinstance(picture, Image.Image | str | Path):
        raise UserError(f"{what} is {picture!r:.80}; expected a PIL image or a path of a picture")
    try:
        found = picture if isinstance(picture, Image.Image) else upright(Path(picture).read_bytes())
        return brightness(found) if mask else flatten(found)
    except Exception as error:  # Pillow's decoders raise anything on a broken file
        place = "" if isinstance(picture, Image.Image) else f" {picture}"
        raise UserError(f"cannot read {what}{place} as a picture: {explain(error):.200}") from error


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
