"""Trainings: begun, planned, their pictures looked at; the runs themselves are another room's."""

from typing import Any

from fastapi import APIRouter

from hyperbrush.app.requests import TrainRequest
from hyperbrush.app.site import Site
from hyperbrush.app.train import schema as settings_schema
from hyperbrush.app.train import service as trainings


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room."""

    @router.post("/trainings", status_code=201)
    def train(request: TrainRequest) -> dict[str, str]:
        """Begin a run and put it into the queue; `data` names datasets or folders of the workspace."""
        job = trainings.start(site, request)
        return {"run": str(job.arguments["run"]), "job": job.id}

    @router.post("/trainings/problems")
    def problems(request: TrainRequest) -> list[str]:
        """Everything that is wrong with a training's settings; nothing is begun."""
        return trainings.problems(site.workspace, request.settings, request.presets)

    @router.post("/plans", status_code=201)
    def plan(request: TrainRequest) -> dict[str, Any]:
        """A job that measures steps, time and memory of a training; its result has them."""
        return trainings.look(site, "plan", request).as_dict()

    @router.post("/preflights", status_code=201)
    def preflight(request: TrainRequest) -> dict[str, Any]:
        """A job that looks at the pictures; its result is the report."""
        return trainings.look(site, "preflight", request).as_dict()

    @router.get("/settings-schema")
    def schema() -> dict[str, Any]:
        """Every setting of a training, grouped: kind of input, default, limits, help, the webui's name."""
        return settings_schema.schema()
