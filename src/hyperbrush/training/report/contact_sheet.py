"""A run's previews over time in one picture: a row for each prompt, a column for each step shown."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_folder
from hyperbrush.generation.infotext import Infotext, read_infotext, write_infotext
from hyperbrush.generation.picture_files import save_picture, settings_text

if TYPE_CHECKING:
    from PIL.Image import Image

PREVIEWS = "previews"  # of a run folder
NAME = "contact_sheet.png"
SMALLEST, LARGEST, PAGE = 128, 256, 512  # pixels of a cell's height; PAGE: with many pictures in it
COLUMNS = 8  # steps shown at most
ACROSS = 8  # pictures a row in the grids of older runs, see `objectives`
GAP = 2  # pixels between them
log = logging.getLogger(__name__)


def preview_path(run: str | Path, step: int) -> Path:
    """Folder of the previews at a step: previews/step-00000100, with prompt-0.png and so on in it."""
    return Path(run) / PREVIEWS / f"step-{step:08d}"


def save_previews(
    run: str | Path,
    step: int,
    pictures: "Sequence[Image]",
    prompts: Sequence[str] = (),
    seeds: Sequence[int] = (),
    **settings: Any,
) -> Path:
    """Write one picture a prompt, all or none, each with its prompt, seed and step inside; return the folder.

    settings: further fields of `Infotext`, such as steps and guidance_scale of the sampling.

    Raises:
        UserError: it cannot be written; another number of prompts than pictures.
    """
    if prompts and len(prompts) != len(pictures):
        raise UserError(f"{len(pictures)} previews for {len(prompts)} prompts; expected one for each")
    with atomic_folder(preview_path(run, step)) as folder:
        for number, picture in enumerate(pictures):
            prompt = prompts[number] if prompts else ""
            about = {"Run": run_name(run), "Training step": str(step)}
            seed = seeds[number] if seeds else None
            infotext = Infotext(
                prompt=prompt, seed=seed, size=(picture.height, picture.width), fields=about, **settings
            )
            save_picture(picture, folder / f"prompt-{number}.png", write_infotext(infotext))
    return preview_path(run, step)


def find_previews(run: str | Path) -> dict[int, Path]:
    """Step → its folder of pictures, or its one file with a grid of all prompts, ascending."""
    found: dict[int, Path] = {}
    folder = Path(run) / PREVIEWS
    for path in sorted(folder.glob("step-*")) if folder.is_dir() else []:
        number = path.name.removeprefix("step-").removesuffix(".png")
        if number.isdecimal() and (path.is_dir() or path.suffix == ".png"):
            found[int(number)] = path
    return dict(sorted(found.items()))


def open_previews(path: Path, count: int = 0) -> "list[Image]":
    """The pictures of one step, in the order of the prompts.

    path: of `find_previews`; count: number of prompts, by which a grid is cut; 0: the grid stays whole.

    Raises:
        UserError: a picture cannot be read.
    """
    from PIL import Image

    pictures = []
    for file in _files(path):
        try:
            with Image.open(file) as picture:
                pictures.append(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read the preview {file}: {error}") from error
    return _cut(pictures[0], count) if not path.is_dir() and count else pictures


def chosen_steps(steps: Sequence[int], columns: int) -> list[int]:
    """At most so many of them (2 or more), evenly, the first and the last always.

    >>> chosen_steps([100, 200, 300, 400, 500, 600, 640], 4)
    [100, 300, 500, 640]
    """
    ordered = sorted(set(steps))
    if len(ordered) <= columns:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (columns - 1))] for i in range(columns)]


def contact_sheet(run: str | Path, *, best: int | None = None) -> "Image | None":
    """Draw it from a run folder's previews; None where there are none yet.

    best: the step whose column is called the best.
    """
    from PIL import Image

    from hyperbrush.generation.grids import labelled_grid

    # Of a generator a preview is a page of styles, each with its prompts, which stays whole.
    whole = run_config(run).get("kind") == "generator"
    said, most = ([], PAGE) if whole else (run_prompts(run), LARGEST)
    found = find_previews(run)
    shown: dict[int, list[Image.Image]] = {}
    for step in chosen_steps(list(found), COLUMNS):
        try:
            shown[step] = open_previews(found[step], len(said))
        except UserError as error:
            log.warning("%s; its column is left out", error)
    shown = {step: pictures for step, pictures in shown.items() if pictures}
    if not shown:
        return None
    height = min(most, max(SMALLEST, max(p.height for row in shown.values() for p in row)))
    rows = max(map(len, shown.values()))
    nothing = Image.new("RGB", next(iter(shown.values()))[0].size, "white")
    cells = [[row[y] if y < len(row) else nothing for row in shown.values()] for y in range(rows)]
    labels = [said[y] if y < len(said) and len(said) >= rows else "" for y in range(rows)]
    above = [f"step {step}" + (" (best)" if step == best else "") for step in shown]
    return labelled_grid(cells, labels, above, side=height, title=run_name(run))


def sheet_text(run: str | Path) -> str:
    """The run's name, prompts and training settings, as a picture's ``parameters`` text."""
    config = run_config(run)
    fields = {"Run": run_name(run)}
    if isinstance(training := config.get("training"), Mapping):
        settings = {k: v for k, v in training.items() if k != "prompts" and v is not None}
        fields["Training"] = json.dumps(settings, default=str, ensure_ascii=False)
    model = config.get("model")
    named = model if isinstance(model, str) else ""
    return write_infotext(Infotext(prompt="\n".join(run_prompts(run)), model=named, fields=fields))


def run_config(run: str | Path) -> dict[str, Any]:
    """The run's config.yaml as it stands there; empty where there is none that can be read."""
    try:
        found = yaml.safe_load((Path(run) / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def run_name(run: str | Path) -> str:
    """The name in the run's config, else that of its folder."""
    return str(run_config(run).get("name") or Path(run).resolve().name)


def run_prompts(run: str | Path) -> list[str]:
    """The prompts of the run's previews: those of its config, else what the last ones say inside."""
    config = run_config(run)
    training = config.get("training")
    inner = training.get("prompts") if isinstance(training, Mapping) else None
    found = inner or config.get("prompts")
    if isinstance(found, list):
        return [str(prompt) for prompt in found]
    previews = list(find_previews(run).values())
    return (
        [_prompt_inside(file) for file in _files(previews[-1])] if previews and previews[-1].is_dir() else []
    )


def _files(previews: Path) -> list[Path]:
    """The pictures of a step's previews in the order of the prompts; the path itself where it is one grid."""
    if not previews.is_dir():
        return [previews]
    numbered = [path for path in previews.glob("prompt-*.png") if path.stem[7:].isdecimal()]
    return sorted(numbered, key=lambda path: int(path.stem[7:]))


def _prompt_inside(picture: Path) -> str:
    try:
        return read_infotext(settings_text(picture)).prompt
    except UserError:  # another program has written it anew
        return ""


def _cut(page: "Image", count: int) -> "list[Image]":
    """The first ``count`` pictures of a grid that `hyperbrush.ldm.pictures.grid` made."""
    across = min(ACROSS, count)
    down = -(-count // across)
    width, height = (page.width + GAP) // across - GAP, (page.height + GAP) // down - GAP
    if (width + GAP) * across - GAP != page.width or (height + GAP) * down - GAP != page.height:
        return [page]  # of another number of prompts
    corners = [(n % across * (width + GAP), n // across * (height + GAP)) for n in range(count)]
    return [page.crop((x, y, x + width, y + height)) for x, y in corners]
