"""What ships with the package: the embedded emoji model and a small style set."""

from pathlib import Path

from hyperbrush.errors import unknown_name

FOLDER = Path(__file__).parent
MODELS = ("emoji",)


def model_folder(name: str) -> Path:
    """Folder of an embedded model.

    Raises:
        UserError: no such model is embedded.
    """
    if name not in MODELS:
        raise unknown_name("embedded model", name, MODELS)
    return FOLDER / name


def generator_file(model: str) -> Path | None:
    """The generator of weights that ships for a model; None where none does."""
    path = FOLDER / "generators" / f"{model}.safetensors"
    return path if model in MODELS and path.is_file() else None


def style_folder() -> Path:
    """48 pictures of Fluent Emoji High Contrast (MIT), the demo's style."""
    return FOLDER / "style"
