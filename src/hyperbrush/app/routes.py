"""The REST API: /api/v1 from each room's own `add(router, site)`, and the webui's endpoints."""

from importlib import import_module
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI

if TYPE_CHECKING:
    from hyperbrush.app.site import Site

ROOMS = {  # tag → module
    "system": "settings.api",
    "jobs": "jobs.api",
    "drawings": "create.api",
    "networks": "networks.api",
    "datasets": "train.api_datasets",
    "trainings": "train.api",
    "runs": "runs.api",
    "styles": "styles.api",
    "comparing": "compare.api",
    "models": "model.api",
}
REFUSED = {
    400: {"description": "What was asked cannot be done; `detail` says why"},
    404: {"description": "It is not there"},
}


def add(app: FastAPI, site: "Site") -> None:
    """Add every room, and the webui's own endpoints."""
    for room, module in ROOMS.items():
        router = APIRouter(prefix="/api/v1", tags=[room], responses=REFUSED)  # type: ignore[arg-type]
        import_module(f"hyperbrush.app.{module}").add(router, site)
        app.include_router(router)
    import_module("hyperbrush.app.webui.api").add(app, site)
