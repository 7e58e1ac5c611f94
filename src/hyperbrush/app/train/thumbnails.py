"""Small copies of pictures, kept until the picture changes."""

import hashlib
from pathlib import Path

from hyperbrush.app.uploads import MOST_BYTES, decoding, open_picture
from hyperbrush.files import atomic_path

SIDES = (128, 256, 512, 1024)  # in pixels; few, so that asking for many sizes fills no disk


def thumbnail(kept: Path, path: Path, side: int, shown: str) -> Path:
    """A copy (WebP) that fits a square of the next of `SIDES`, transparency on white.

    Args:
        kept: folder of the copies.
        path, shown: the picture, and its name for a person.

    Raises:
        UserError: the picture cannot be read, or the copy cannot be written.
    """
    from hyperbrush.ldm.data.pictures import opened

    side = next((s for s in SIDES if s >= side), SIDES[-1])
    stat = path.stat()
    key = f"{path}|{stat.st_mtime_ns}|{stat.st_size}".encode("utf-8", "surrogateescape")
    copy = kept / str(side) / f"{hashlib.sha256(key).hexdigest()[:32]}.webp"
    if not copy.is_file():
        with decoding:
            with path.open("rb") as file:
                picture = opened(open_picture(file.read(MOST_BYTES + 1), shown), shown)
            picture.thumbnail((side, side))
        with atomic_path(copy, sync=False) as temporary:
            picture.save(temporary, "WEBP", quality=82)
    return copy
