"""What a training would be, and what is odd about its pictures: looked at before the first step."""

from typing import TYPE_CHECKING, Any

from hyperbrush.app.jobs.worker import Asked, Desk
from hyperbrush.app.model.work import opened
from hyperbrush.app.requests import TrainRequest, checked

if TYPE_CHECKING:
    from hyperbrush.training.attention.run import HypernetworkRun


def plan(desk: Desk) -> dict[str, Any]:
    """Job "plan": a `TrainRequest`; steps, time and memory, measured on a model of its own as a training's would be."""
    from hyperbrush.training.before.plan import plan as planned

    desk.tell(now=True, stage="planning")
    found = planned(_config(desk))
    return {
        "pictures": found.pictures,
        "held_out": found.held_out,
        "captions": found.captions,
        "shapes": [{"width": w, "height": h, "pictures": n} for (h, w), n in sorted(found.shapes.items())],
        "steps": found.steps,
        "batch_size": found.config.training.batch_size,
        "epochs": found.epochs,
        "parameters": found.parameters,
        "seconds": found.seconds,
        "memory": found.memory,
        "advice": list(found.advice),
        "text": found.text(),
        "report": found.report.as_dict(),
    }


def preflight(desk: Desk) -> dict[str, Any]:
    """Job "preflight": a `TrainRequest`; what is odd about the pictures."""
    from hyperbrush.training.attention.run import look_over

    config = _config(desk)

    def told(done: int, of: int) -> None:
        desk.tell(now=done == of, stage="looking at pictures", step=done, steps=of)
        if how := desk.asked():
            raise Asked(how)

    return look_over(config, opened(desk, config.model).model, told).as_dict()


def _config(desk: Desk) -> "HypernetworkRun":
    from hyperbrush.app.train.service import run_config

    request: TrainRequest = checked(TrainRequest, desk.arguments)
    return run_config(desk.workspace, request.settings, request.presets)
