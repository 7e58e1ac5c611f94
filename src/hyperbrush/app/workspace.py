"""The folders the user works in, and their preferences."""

import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hyperbrush.errors import UserError
from hyperbrush.files import write_text
from hyperbrush.setting_errors import wrong_settings
from hyperbrush.trash import Trash

if TYPE_CHECKING:
    from hyperbrush.hypernetworks.library.library import HypernetworkLibrary


class Preferences(BaseModel):
    """Settings of the app, kept in .hyperbrush/preferences.yaml; folders are relative to the workspace."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        "emoji", min_length=1, description="emoji, a diffusers folder, a single-file checkpoint or a hub id"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field("auto", description="of the model's numbers")
    language: Literal["", "en", "ko", "zh"] = Field("", description="of the pages; empty: the browser's")
    theme: Literal["auto", "light", "dark"] = Field("auto", description="of the pages; auto: the browser's")
    hypernetworks: str = Field("models/hypernetworks", min_length=1, description="where they are kept")
    generators: str = Field("models/generators", min_length=1, description="where generators of weights are")
    models: str = Field(
        "models/stable-diffusion", min_length=1, description="where base models are looked for"
    )
    runs: str = Field("runs", min_length=1, description="where trainings are kept")
    datasets: str = Field("datasets", min_length=1, description="where training pictures are kept")
    outputs: str = Field("outputs", min_length=1, description="where drawn pictures are kept")

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        kind, _, number = value.partition(":")
        numbered = number.isascii() and number.isdecimal() and len(number) < 4 and kind == "cuda"
        if kind not in ("auto", "cpu", "cuda", "mps") or (":" in value and not numbered):
            raise ValueError(f"device {value!r}: expected auto, cpu, cuda, cuda:1 or mps")
        # One name for one device, since each name has a worker of its own.
        return f"cuda:{int(number)}" if numbered and int(number) else kind

    @field_validator("model", "hypernetworks", "generators", "models", "runs", "datasets", "outputs")
    @classmethod
    def _path(cls, value: str) -> str:
        if "\0" in value or any(0xD800 <= ord(c) < 0xE000 for c in value):
            raise ValueError("no name has a zero byte or half a character in it")
        return value


FOLDERS = ("hypernetworks", "generators", "models", "runs", "datasets", "outputs")


class Workspace:
    """A folder with everything the user has: networks, runs, pictures, and in .hyperbrush the app's own state."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self.state = self.root / ".hyperbrush"
        self.trash = Trash(self.state / "bin")
        self._lock = threading.Lock()
        self._kept: tuple[tuple[int, int, int], Preferences] | None = None  # stamp of the file, what it says

    @cached_property
    def _file(self) -> Path:
        return self.state / "preferences.yaml"

    @property
    def preferences(self) -> Preferences:
        """As they stand on the disk.

        Raises:
            UserError: the file is broken.
        """
        try:
            about = self._file.stat()
            stamp = (about.st_mtime_ns, about.st_ino, about.st_size)
            if self._kept is not None and self._kept[0] == stamp:
                return self._kept[1]
            text = self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Preferences()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self._file}: {error}") from error
        try:
            found = preferences_from(yaml.safe_load(text) or {})
        except (yaml.YAMLError, UserError) as error:
            raise UserError(f"{self._file}: {error}; mend or remove it") from error
        self._kept = stamp, found
        return found

    def prefer(self, **changes: object) -> Preferences:
        """Change some preferences.

        Raises:
            UserError: an unknown one, an impossible value, or they cannot be written.
        """
        with self._lock:
            new = preferences_from({**self.preferences.model_dump(), **changes})
            write_text(self._file, yaml.safe_dump(new.model_dump(), sort_keys=False, allow_unicode=True))
        return new

    @property
    def library(self) -> "HypernetworkLibrary":
        """Its hypernetworks.

        Raises:
            UserError: their folder cannot be made.
        """
        from hyperbrush.hypernetworks.library.library import HypernetworkLibrary

        return HypernetworkLibrary(self.folder("hypernetworks"))

    @property
    def loras(self) -> "HypernetworkLibrary":
        """LoRA files of other programs, in "loras" beside the hypernetworks; the folder may not be there.

        Raises:
            UserError: the hypernetworks' folder cannot be made.
        """
        from hyperbrush.hypernetworks.library.library import HypernetworkLibrary

        return HypernetworkLibrary(self.folder("hypernetworks").parent / "loras")

    def folder(self, name: str) -> Path:
        """One of `FOLDERS`, made where it is missing.

        Raises:
            UserError: it cannot be made.
        """
        if name not in FOLDERS:
            raise KeyError(name)
        path = self.root / str(getattr(self.preferences, name))
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the folder {path} ({name}): {error.strerror or error}; choose another in Settings"
            ) from error
        return path


def preferences_from(values: object) -> Preferences:
    """Validated preferences.

    Raises:
        UserError: all that is wrong, in one line.
    """
    try:
        return Preferences.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(wrong_settings(Preferences, error))) from error
