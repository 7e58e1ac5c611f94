"""Pictures that come from outside: limited in bytes, pixels and number, decoded once, kept as PNG under a random name."""

import contextlib
import re
import secrets
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from hyperbrush.errors import NotThere, UserError
from hyperbrush.files import atomic_path

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 32 << 20
MOST_PIXELS = 40_000_000
MOST_DECODED = 2  # pictures at once: each may take half a gigabyte
MOST_KEPT = 1000  # and together
MOST_KEPT_BYTES = 4 << 30  # beyond either, the oldest go
# What Pillow raises on damaged files and EXIF.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    struct.error,
    MemoryError,
)
# Those of `ldm.data.pictures.FORMATS`, which is not loaded before it is needed: what trains can be put in.
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "TGA"),
    *("HEIF", "JXL"),
)
# For a page's file chooser: browsers do not know all of them as pictures.
ACCEPT = "image/*,.avif,.jp2,.j2k,.jpx,.tga,.ico,.ppm,.pgm,.pbm,.pnm,.heic,.heif,.hif,.jxl"


class ReentrantSemaphore:
    """Lets in so many threads at once; one that is in may enter again."""

    def __init__(self, most: int) -> None:
        self._places = threading.BoundedSemaphore(most)
        self._mine = threading.local()

    def __enter__(self) -> None:
        depth = getattr(self._mine, "depth", 0)
        if not depth:
            self._places.acquire()
        self._mine.depth = depth + 1

    def __exit__(self, *_: object) -> None:
        self._mine.depth -= 1
        if not self._mine.depth:
            self._places.release()


decoding = ReentrantSemaphore(MOST_DECODED)  # held by whoever has a whole picture in memory


def open_picture(content: bytes, name: str = "the picture") -> "Image":
    """Decode a picture within the limits; its mode is kept, its orientation applied.

    Raises:
        UserError: too large, of another kind, or damaged.
    """
    from PIL import Image

    from hyperbrush.ldm.data.pictures import explain, open_bytes, upright

    if len(content) > MOST_BYTES:
        raise UserError(f"{name} has more than {MOST_BYTES >> 20} MiB, which is the most")
    try:
        with decoding, open_bytes(content, FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise UserError(
                    f"{name} has {picture.width}×{picture.height} pixels; 40 million are the most"
                )
            return upright(content, FORMATS)
    except UserError:
        raise
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise UserError(
            f"{name} cannot be read as a picture ({explain(error):.160}); expected PNG, JPEG, WebP, TIFF, …"
        ) from error


class Uploads:
    """Pictures the user gave for the next job; folder: of the app's state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, content: bytes, name: str = "the picture") -> str:
        """Keep a picture and return its id.

        Raises:
            UserError: as `open_picture`, or it cannot be written.
        """
        from hyperbrush.ldm.data.pictures import eight_bits

        upload = secrets.token_hex(12)
        with decoding:
            try:
                picture = eight_bits(open_picture(content, name))
            except ValueError as error:
                raise UserError(f"{name} cannot be read as a picture: {error}") from error
            with atomic_path(self.folder / f"{upload}.png") as path:
                picture.save(path, "PNG")
        self._make_room()
        return upload

    def path(self, upload: str) -> Path:
        """The file of an id.

        Raises:
            UserError: there is none.
        """
        path = self.folder / f"{upload}.png"
        if not re.fullmatch(r"[0-9a-f]{24}", upload) or not path.is_file():
            raise NotThere(f"there is no uploaded picture {upload!r:.40}")
        return path

    def open(self, upload: str) -> "Image":
        """The picture of an id.

        Raises:
            UserError: there is none.
        """
        from PIL import Image

        with Image.open(self.path(upload)) as picture:
            picture.load()
            return picture

    def size(self, upload: str) -> tuple[int, int]:
        """(width, height) of the picture of an id, in pixels.

        Raises:
            UserError: there is none.
        """
        from PIL import Image

        with Image.open(self.path(upload)) as picture:
            return picture.size

    def _make_room(self) -> None:
        """Remove the oldest, where there are too many."""
        kept = []
        for path in self.folder.glob("*.png"):
            with contextlib.suppress(OSError):  # another thread was faster
                kept.append((path.stat().st_mtime, path.stat().st_size, path))
        size = 0
        for number, (_, own, path) in enumerate(sorted(kept, reverse=True)):
            size += own
            if number and (number >= MOST_KEPT or size > MOST_KEPT_BYTES):
                path.unlink(missing_ok=True)
