"""Grids of pictures."""

from typing import Any

from hyperbrush.app.requests import CompareRequest, checked
from hyperbrush.app.work.models import opened
from hyperbrush.app.worker import Asked, Desk


def compare(desk: Desk) -> dict[str, Any]:
    """Job "compare": a `CompareRequest`; grid.png in the job's folder."""
    from hyperbrush.generation import compare as draw
    from hyperbrush.generation.axes import read_axis

    request: CompareRequest = checked(CompareRequest, desk.arguments)
    axes = [read_axis(axis) for axis in request.axes]
    model = opened(desk, request.model)
    own = model.model.image_size

    def told(done: int, of: int) -> None:
        desk.tell(now=done == of, step=done, steps=of)
        if how := desk.asked():
            raise Asked(how)
        desk.between()

    grid = draw(
        request.prompt,
        *axes,
        model=model,
        negative=request.negative,
        seed=request.seed,
        steps=request.steps,
        sampler=request.sampler,
        guidance_scale=request.guidance_scale,
        size=(request.height or own, request.width or own) if request.height or request.width else None,
        clip_skip=request.clip_skip,
        hypernetworks=desk.workspace.folder("hypernetworks"),
        on_progress=told,
    )
    grid.save(desk.folder / "grid.png")
    return {"file": "grid.png", "notes": list(grid.notes), "seed": grid.settings.seed}
