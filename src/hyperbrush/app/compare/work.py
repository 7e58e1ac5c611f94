"""Grids of pictures."""

import random
import time
from typing import Any

from hyperbrush.app.jobs.context import JobContext
from hyperbrush.app.model.service import Pace, note_pace
from hyperbrush.app.model.work import opened
from hyperbrush.app.requests import CompareRequest, checked


def compare(context: JobContext) -> dict[str, Any]:
    """Job "compare": a `CompareRequest`; grid.png in the job's folder."""
    from hyperbrush.app.compare.service import estimate, size_of
    from hyperbrush.generation.axes import Cell, read_axis
    from hyperbrush.generation.comparison import draw_grid

    request: CompareRequest = checked(CompareRequest, context.arguments)
    axes = [read_axis(axis) for axis in request.axes]
    model = opened(context, request.model)
    own = model.model.image_size
    seed = random.randrange(2**31) if request.seed is None else request.seed
    begin, waited = time.perf_counter(), 0.0

    def report(done: float, of: int) -> None:
        gone = time.perf_counter() - begin - waited
        left = gone / done * (of - done) if done else None
        context.tell(now=done == of, stage="drawing", step=int(done), steps=of, done=done, left=left)
        context.raise_if_requested()

    def between() -> None:
        nonlocal waited
        since = time.perf_counter()
        context.between()
        waited += time.perf_counter() - since

    context.tell(now=True, stage="drawing", step=0, done=0)
    grid = draw_grid(
        Cell(request.prompt, seed, request.settings(size_of(request, own))),
        [*axes, None, None][:3],
        lambda: model,
        context.workspace.library,
        on_progress=report,
        between=between,
    )
    grid.save(context.folder / "grid.png")
    seconds = time.perf_counter() - begin - waited
    work = estimate(context.workspace, context.worker.device, request).work(own * own)
    pace = Pace(seconds / work, own * own)
    note_pace(context.workspace, context.worker.device, request.model or context.model, pace)
    return {
        "file": "grid.png",
        "notes": list(grid.notes),
        "seed": grid.settings.seed,
        "width": grid.image.width,
        "height": grid.image.height,
        "pictures": len(grid.pictures),
        "seconds": seconds,
        "parameters": grid.parameters,
    }
