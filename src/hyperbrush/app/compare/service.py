"""Grids asked for from outside: looked through before they are drawn, counted, timed, queued."""

from dataclasses import dataclass
from pathlib import Path

from hyperbrush.app.create import wildcards
from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.model.service import Pace, pace_of, refuse_elsewhere
from hyperbrush.app.requests import CompareRequest
from hyperbrush.app.site import Site
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import NotThere, UserError

GRID = "grid.png"  # in the job's folder


@dataclass(frozen=True)
class GridEstimate:
    """What a grid will be.

    Args:
        cells: places in the grid.
        drawn: for each different picture its (steps, pixels; None for the model's own size).
        pace: how fast this model draws here; None where that was never measured.
    """

    cells: int
    drawn: tuple[tuple[int, int | None], ...]
    pace: Pace | None

    @property
    def pictures(self) -> int:
        """Different pictures: cells of equal settings share one."""
        return len(self.drawn)

    def work(self, own: int) -> float:
        """Sampling steps of pictures of ``own`` pixels that it is worth."""
        return max(1e-9, sum(steps * (pixels or own) / own for steps, pixels in self.drawn))

    @property
    def seconds(self) -> float | None:
        """How long it takes, as far as the worker has measured this model."""
        return None if self.pace is None else self.pace.seconds * self.work(self.pace.pixels)

    def as_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return {"cells": self.cells, "pictures": self.pictures, "seconds": self.seconds}


def estimate(workspace: Workspace, device: str, request: CompareRequest) -> GridEstimate:
    """Look a grid through: axes, prompts and networks; nothing is drawn.

    Raises:
        UserError: whatever is wrong with it.
    """
    from hyperbrush.generation.axes import Cell, read_axis
    from hyperbrush.generation.comparison import cells_of

    refuse_elsewhere(workspace, request.model)
    axes = [read_axis(axis) for axis in request.axes]
    base = Cell(request.prompt, request.seed or 0, request.settings(size_of(request, 0)))
    library = workspace.library
    cells = cells_of(base, [*axes, None, None][:3], library)
    for prompt in {cell.prompt for cell in cells.values()}:
        if wildcard := wildcards.first_of(prompt):
            raise UserError(
                f"{wildcard:.100} is a wildcard, and a comparison draws one prompt: write the words themselves"
            )
    drawn = []
    for cell in dict.fromkeys(cells.values()):
        height, width = cell.settings.size or (0, 0)
        drawn.append((cell.settings.steps, height * width or None))
    return GridEstimate(len(cells), tuple(drawn), pace_of(workspace, device, request.model))


def begin(site: Site, request: CompareRequest) -> Job:
    """Put a grid into the queue, once it was found sound.

    Raises:
        UserError: whatever is wrong with it.
    """
    estimate(site.workspace, site.device, request)
    return site.submit("compare", request.model_dump())


def grid_file(site: Site, job: str) -> Path:
    """The grid that a job has drawn.

    Raises:
        NotThere: no such job, or it has drawn none (yet).
    """
    found = site.jobs.get(job)
    if found.kind != "compare" or not has_grid(site, found):
        raise NotThere(f"job {job:.40} has no grid: it is {found.kind}, {found.state}")
    return site.jobs.folder / found.id / GRID


def has_grid(site: Site, job: Job) -> bool:
    """Whether a comparison's grid is drawn, and was not deleted in the gallery."""
    return job.state == "done" and (site.jobs.folder / job.id / GRID).is_file()


def size_of(request: CompareRequest, own: int) -> tuple[int, int] | None:
    """(height, width) of a request, one side's default being the model's own; None where neither is given."""
    if request.height is None and request.width is None:
        return None
    if not own and (request.height is None or request.width is None):
        own = request.height or request.width or 0
    return request.height or own, request.width or own
