"""What a training would be, and what is odd about its pictures: looked at before the first step."""

from typing import TYPE_CHECKING, Any

from hyperbrush.app.jobs.worker import JobContext
from hyperbrush.app.model.work import opened
from hyperbrush.app.requests import TrainRequest, checked

if TYPE_CHECKING:
    from hyperbrush.training.attention.run import HypernetworkRun


def plan(context: JobContext) -> dict[str, Any]:
    """Job "plan": a `TrainRequest`; steps, time and memory, measured on a model of its own as a training's would be."""
    from hyperbrush.training.before.plan import plan as planned

    context.tell(now=True, stage="planning")
    found = planned(_config(context))
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


def preflight(context: JobContext) -> dict[str, Any]:
    """Job "preflight": a `TrainRequest`; what is odd about the pictures."""
    from hyperbrush.training.attention.run import look_over

    config = _config(context)

    def told(done: int, of: int) -> None:
        context.tell(now=done == of, stage="looking at pictures", step=done, steps=of)
        context.raise_if_requested()

    return look_over(config, opened(context, config.model).model, told).as_dict()


def _config(context: JobContext) -> "HypernetworkRun":
    from hyperbrush.app.train.service import run_config

    request: TrainRequest = checked(TrainRequest, context.arguments)
    return run_config(context.workspace, request.settings, request.presets)
