"""What a new user begins with: prompts a model surely knows, three pictures of the bundled style, the first steps."""

from collections.abc import Sequence
from pathlib import Path

from hyperbrush.app.names import free_name
from hyperbrush.app.site import Site
from hyperbrush.app.styles.generators import fitting
from hyperbrush.assets import style_folder

PROMPTS = {"emoji": ("cat face", "red heart", "pizza")}  # by the model
OTHERS = ("a cat", "a lighthouse by the sea", "portrait of a woman")
NAME = "ink"  # of a hypernetwork of the bundled style, as `hyperbrush demo` calls it
SIX = (
    "hibiscus",
    "helicopter",
    "shortcake",
    "man-elf",
    "speedboat",
    "sushi",
)  # of the bundled style's pictures
THREE = ("crab", "sunflower", "cactus")


def prompts(model: str) -> Sequence[str]:
    """Prompts to try a model with."""
    return PROMPTS.get(model, OTHERS)


def picture(name: str) -> Path:
    """A picture of the bundled style."""
    return style_folder() / "train" / f"{name}.png"


def uploads(site: Site) -> dict[str, str]:
    """Three pictures of the bundled style as uploads: what each shows, by its id.

    Raises:
        UserError: they cannot be written.
    """
    return {site.uploads.keep(picture(name).read_bytes(), name): name for name in THREE}


def free(site: Site) -> str:
    """`NAME`, or the next one that neither a run nor a hypernetwork has."""
    networks = site.workspace.folder("hypernetworks").glob("*.safetensors")
    return free_name(NAME, {name.casefold() for name in (*site.runs.folders(), *(p.stem for p in networks))})


def taken(site: Site) -> dict[str, bool]:
    """Which of the first steps there are here, and whether each was taken: a picture drawn, a hypernetwork trained or
    put in, one made from pictures.
    """
    jobs, library = site.jobs, site.workspace.folder("hypernetworks")
    found = {
        "see": bool(jobs.all(kinds=("draw",), last=1)),
        "train": bool(site.runs.folders()) or (library.is_dir() and bool(site.workspace.library.names())),
    }
    if fitting(site.workspace):
        found["make"] = bool(jobs.all(kinds=("style",), last=1))
    return found
