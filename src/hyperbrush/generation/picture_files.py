"""Settings inside picture files: PNG text chunks, and the EXIF user comment of JPEG and WebP."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path, check_place

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "parameters"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
_UNICODE, _ASCII = b"UNICODE\0", b"ASCII\0\0\0"
_WITH_EXIF = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def check_picture_path(path: Path) -> None:
    """Refuse a place for a picture that could not be written, before it is drawn.

    Raises:
        UserError: it is a folder, its ending is of no picture format, or nothing can be written beside it.
    """
    from PIL import Image

    if path.is_dir():
        raise UserError(f"{path} is a folder: name a picture in it, such as {path / 'picture.png'}")
    if path.suffix.lower() not in Image.registered_extensions():
        raise UserError(f"cannot save {path}: {path.suffix or 'no suffix'!r} is no picture format; take .png")
    check_place(path.parent, "--out")


def save_picture(image: "Image", path: str | Path, text: str) -> Path:
    """Write a picture whole or not at all, with its settings in it where the format can (PNG, JPEG, WebP).

    Raises:
        UserError: it cannot be written, Pillow knows no such format, or the text is no Unicode.
    """
    from PIL import Image, PngImagePlugin

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in Image.registered_extensions():
        raise UserError(f"cannot save {path}: {path.suffix or 'no suffix'!r} is no picture format; take .png")
    options: dict[str, Any] = {}
    try:
        if suffix == ".png":
            info = PngImagePlugin.PngInfo()
            info.add_text(KEY, text)  # Latin text as tEXt, else iTXt
            options["pnginfo"] = info
        elif suffix in _WITH_EXIF:
            options["exif"] = _exif(text)
    except UnicodeEncodeError as error:
        raise UserError(f"cannot save {path}: its settings hold characters that are no Unicode") from error
    with atomic_path(path) as temporary:
        try:
            image.save(temporary, **options)
        except (KeyError, ValueError) as error:
            raise UserError(f"cannot save {path}: {error}; take .png") from error
    return path


def settings_text(path: str | Path) -> str:
    """The settings inside a picture file, as text for `infotext.read_infotext`.

    Raises:
        UserError: there is no such file, it is no picture, or there are no settings in it.
    """
    from PIL import Image

    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: expected a picture made by hyperbrush or the webui")
    if not path.is_file():
        raise UserError(f"{path} is no picture file")
    try:
        with Image.open(path) as picture:
            if picture.info.get(KEY) is None and picture.format == "PNG":
                picture.load()  # the text may stand behind the pixels
            return text_in(picture, str(path))
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"cannot read {path} as a picture: {reason:.200}") from error


def text_in(picture: "Image", name: str) -> str:
    """The settings inside an opened picture; name: what the user calls it.

    Raises:
        UserError: there are none in it.
    """
    found = picture.info.get(KEY)
    if found is None:
        found = _decoded(picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT))
    if not isinstance(found, str) or not found.strip():
        raise UserError(
            f"{name} holds no settings (PNG text 'parameters', or the EXIF user comment of a JPEG or WebP): was it "
            "edited or sent through a service that strips them?"
        )
    return found


def _exif(text: str) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = _UNICODE + text.encode("utf-16-be")
    return exif


def _decoded(comment: Any) -> str | None:
    """An EXIF user comment: 8 bytes of character set, then the text."""
    if isinstance(comment, str):
        return comment
    if not isinstance(comment, bytes):
        return None
    kind, content = comment[:8], comment[8:]
    if kind == _UNICODE:
        # The byte order is nowhere said: of text in any script with blanks and digits, one half is zero.
        big = content[0::2].count(0) >= content[1::2].count(0)
        return content.decode("utf-16-be" if big else "utf-16-le", "replace")
    return (content if kind in (_ASCII, bytes(8)) else comment).decode("utf-8", "replace").rstrip("\0")
