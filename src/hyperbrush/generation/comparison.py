"""Comparison grids: the same prompt with one, two or three of its settings varied."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError
from hyperbrush.generation.axes import ORDER, Axis, Cell, axis, read_axis
from hyperbrush.generation.grids import MOST_PIXELS, labelled_grid, stacked
from hyperbrush.generation.infotext import Infotext, write_infotext
from hyperbrush.generation.opened import OpenedModel, open_model
from hyperbrush.generation.picture_files import save_picture
from hyperbrush.generation.settings import MAX_SEED, Settings, whole
from hyperbrush.generation.text_to_image import DEFAULT_FOLDER, Picture, draw

if TYPE_CHECKING:
    from PIL.Image import Image

    from hyperbrush.hypernetworks import HypernetworkLibrary
    from hyperbrush.ldm.models import LatentDiffusion

MOST_PICTURES = 2000
LEAST_SIDE = 128  # pixels of a cell; smaller pictures are enlarged by a whole number
KEPT_NETWORKS = 8  # files held in memory at once
AxisLike = Axis | str | tuple[str, Sequence[Any]]


@dataclass
class Grid:
    """A comparison: the page, and every picture by its place.

    Args:
        image: the page with its labels.
        pictures: (z, y, x), each counted from 0 → picture. Cells of equal settings share one.
        settings: of the whole: the base settings, and the axes as the webui names them.
        notes: what to tell about it.
    """

    image: "Image"
    pictures: dict[tuple[int, int, int], Picture]
    settings: Infotext
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> str:
        """The settings as the webui's ``parameters`` text."""
        return write_infotext(self.settings)

    def save(self, path: str | Path) -> Path:
        """Write the page whole or not at all, its settings in it.

        Raises:
            UserError: it cannot be written, or Pillow knows no such format.
        """
        return save_picture(self.image, path, self.parameters)


def compare(
    prompt: str,
    x: AxisLike | None = None,
    y: AxisLike | None = None,
    z: AxisLike | None = None,
    *,
    model: "str | Path | LatentDiffusion | OpenedModel" = "emoji",
    negative: str = Settings.negative,
    seed: int | None = None,
    steps: int = Settings.steps,
    sampler: str = Settings.sampler,
    guidance_scale: float = Settings.guidance_scale,
    size: tuple[int, int] | None = None,
    clip_skip: int = Settings.clip_skip,
    discretisation: str = Settings.discretisation,
    hypernetworks: str | Path = DEFAULT_FOLDER,
    loras: str | Path | None = None,
    missing: str = "error",
    device: str = "auto",
    precision: str = "auto",
    attention: str = "auto",
    batch: int = 4,
    side: int | None = None,
    on_progress: Callable[[float, int], None] | None = None,
    between: Callable[[], None] | None = None,
) -> Grid:
    """Draw a prompt with settings varied along x (columns), y (rows) and z (blocks).

    An axis is ("strength", [0, 0.5, 1]), or its text "strength=0,0.5,1" (see `axes.read_axis`). Kinds: prompt (the
    first value is searched for and replaced by each), hypernetwork (a tag is added; "none" adds none; "ink:0.5" has
    its strength), strength (of all tags), seed, steps, cfg, sampler, clip_skip, size.

    Args:
        prompt, negative, model, hypernetworks, loras, missing: as of `generate`, for what no axis varies.
        steps, sampler, guidance_scale, size, clip_skip, discretisation: likewise.
        device, precision, attention: likewise.
        seed: of every picture; None draws one for all.
        batch: pictures drawn at once where all but prompt, networks and seed agree.
        side: height of a picture on the page in pixels; by default its own, enlarged to `LEAST_SIDE`.
        on_progress: called with (pictures done, pictures to do); the first counts steps as fractions.
        between: called between batches, when the model is as it was: others may draw with it then.

    Raises:
        UserError: an unknown axis or value, one kind on two axes, too many pictures, an axis without effect;
            and as `generate`. All that can be known is checked before the first picture.
    """
    from hyperbrush.hypernetworks import HypernetworkLibrary

    axes = [None if one is None else _axis(one) for one in (x, y, z)]
    if axes == [None, None, None]:
        raise UserError("nothing is varied: give an axis, such as strength=0,0.5,1")
    if seed is not None:
        whole("a seed", seed, 0, MAX_SEED)
    return draw_grid(
        Cell(
            prompt,
            random.randrange(2**31) if seed is None else seed,
            Settings(negative, steps, sampler, guidance_scale, size, clip_skip, discretisation),
        ),
        axes,
        lambda: open_model(model, device=device, precision=precision, attention=attention),
        HypernetworkLibrary(hypernetworks),
        loras=None if loras is None else HypernetworkLibrary(loras),
        missing=missing,
        batch=batch,
        side=side,
        on_progress=on_progress,
        between=between,
    )


def draw_grid(
    base: Cell,
    axes: Sequence[Axis | None],
    model: Callable[[], OpenedModel],
    library: "HypernetworkLibrary",
    *,
    loras: "HypernetworkLibrary | None" = None,
    missing: str = "error",
    batch: int = 4,
    side: int | None = None,
    on_progress: Callable[[float, int], None] | None = None,
    between: Callable[[], None] | None = None,
) -> Grid:
    """Draw what `compare` does: the base cell varied along axes x, y and z.

    model: called once everything else was found sound.

    Raises:
        UserError: as `compare`.
    """
    from hyperbrush.generation.batches import check_drawable, settled
    from hyperbrush.hypernetworks.files.adapters import load

    whole("batch", batch, 1, 1000)
    cells = cells_of(base, axes, library, missing, loras)
    opened = model()
    for settings in {cell.settings for cell in cells.values()}:
        check_drawable(opened.model, settings)
    base = replace(base, settings=settled(opened.model, base.settings))
    keep = lru_cache(KEPT_NETWORKS)(load)
    drawn: list[tuple[Cell, Picture]] = []
    batches = list(_batches(cells.values(), batch))
    total = sum(len(cells) for cells in batches)
    for some in batches:
        if drawn and between is not None:
            between()
        told = None if on_progress is None else _steps_as_pictures(on_progress, len(drawn), len(some), total)
        made = draw(
            [cell.prompt for cell in some],
            [cell.seed for cell in some],
            some[0].settings,
            lambda: opened,
            library,
            loras=loras,
            missing=missing,
            load=keep,
            on_step=told,
        )
        drawn += zip(some, made, strict=True)
    pictures = {place: next(p for own, p in drawn if own == cell) for place, cell in cells.items()}
    return Grid(
        _page(pictures, axes, base.prompt, side),
        pictures,
        _settings(base, axes, pictures),
        list(dict.fromkeys(note for _, picture in drawn for note in picture.notes)),
    )


def cells_of(
    base: Cell,
    axes: Sequence[Axis | None],
    library: "HypernetworkLibrary",
    missing: str = "error",
    loras: "HypernetworkLibrary | None" = None,
) -> dict[tuple[int, int, int], Cell]:
    """Every picture of a comparison along x, y and z, by its place (z, y, x); none is drawn.

    Raises:
        UserError: all that can be known to be wrong before the first picture, see `compare`.
    """
    cells = _cells(base, axes)
    _check(cells.values(), axes, library, missing, loras)
    return cells


def _axis(given: AxisLike) -> Axis:
    if isinstance(given, Axis):
        return given
    return read_axis(given) if isinstance(given, str) else axis(*given)


def _cells(base: Cell, axes: Sequence[Axis | None]) -> dict[tuple[int, int, int], Cell]:
    """Every cell's picture, by (z, y, x)."""
    given = [a for a in axes if a is not None]
    kinds = [a.kind for a in given]
    if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
        raise UserError(f"axis {twice[0]!r} is given twice; vary another setting")
    x, y, z = (len(a.values) if a else 1 for a in axes)
    if x * y * z > MOST_PICTURES:
        raise UserError(f"{x} x {y} x {z} pictures are more than {MOST_PICTURES}; take fewer values")
    cells = {}
    for place in itertools.product(range(z), range(y), range(x)):
        cell = base
        chosen = {
            a.kind: (a, a.values[i]) for a, i in zip(axes, reversed(place), strict=True) if a is not None
        }
        for kind in ORDER:
            if kind in chosen:
                one, value = chosen[kind]
                cell = one.apply(cell, value)
        cells[place] = cell
    return cells


def _check(
    cells: Iterator[Cell] | Any,
    axes: Sequence[Axis | None],
    library: "HypernetworkLibrary",
    missing: str,
    loras: "HypernetworkLibrary | None",
) -> None:
    """Look at every prompt and every network's header before the first picture is drawn."""
    from hyperbrush.generation.prompt_networks import read_prompt
    from hyperbrush.hypernetworks.library.summary import summarise

    prompts = dict.fromkeys(cell.prompt for cell in cells)
    read = [read_prompt(text, library, missing, loras) for text in prompts]
    for path in {path for one in read for path in one.files.values()}:
        summarise(path)
    named = any(one.files or any(note.startswith("drawn without") for note in one.notes) for one in read)
    if not named and any(a is not None and a.kind == "strength" for a in axes):
        raise UserError(
            "axis 'strength' has nothing to act on: put <hypernet:NAME> into the prompt, or vary hypernet too"
        )


def _batches(cells: Any, most: int) -> Iterator[list[Cell]]:
    """Shots without repetition, those of equal settings together, at most so many."""
    groups: list[tuple[Settings, list[Cell]]] = []
    for cell in cells:
        own = next((group for settings, group in groups if settings == cell.settings), None)
        if own is None:
            groups.append((cell.settings, [cell]))
        elif cell not in own:
            own.append(cell)
    for _, group in groups:
        for i in range(0, len(group), most):
            yield group[i : i + most]


def _steps_as_pictures(
    tell: Callable[[float, int], None], before: int, now: int, total: int
) -> Callable[[int, int, Any], None]:
    return lambda step, steps, _latents: tell(before + now * step / steps, total)


def _page(
    pictures: dict[tuple[int, int, int], Picture],
    axes: Sequence[Axis | None],
    prompt: str,
    side: int | None,
) -> "Image":
    columns, rows, blocks = ([a.label(v) for v in a.values] if a else [""] for a in axes)
    height = max(picture.image.height for picture in pictures.values())
    side = side or height * -(-LEAST_SIDE // height)
    widest = max(p.image.width / p.image.height for p in pictures.values())
    most = min(MOST_PIXELS / len(rows) / len(blocks), MOST_PIXELS / len(columns) / widest)
    side = max(16, min(side, int(most)))
    made = [
        labelled_grid(
            [[pictures[k, j, i].image for i in range(len(columns))] for j in range(len(rows))],
            rows=rows,
            columns=columns,
            side=side,
            title=block,
        )
        for k, block in enumerate(blocks)
    ]
    return stacked(made, side=side, title=prompt)


def _settings(
    base: Cell, axes: Sequence[Axis | None], pictures: dict[tuple[int, int, int], Picture]
) -> Infotext:
    """The base settings, and the axes by the webui's names."""
    first = pictures[0, 0, 0].settings
    fields = dict(first.fields) | {"Script": "X/Y/Z plot"}
    for letter, one in zip("XYZ", axes, strict=True):
        if one is not None:
            fields |= {f"{letter} Type": one.title, f"{letter} Values": one.written()}
    hashes: dict[str, str] = {}
    for picture in pictures.values():
        hashes |= picture.settings.hypernet_hashes
    return replace(
        first,
        **base.settings.written(),
        prompt=base.prompt.strip(),
        size=base.settings.size or first.size,
        hypernet_hashes=hashes,
        fields=fields,
    )
