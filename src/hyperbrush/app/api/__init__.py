"""The REST API under /api/v1: a module for each room of the app, each with `add(router, site)`."""

from importlib import import_module
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI

if TYPE_CHECKING:
    from hyperbrush.app.site import Site

ROOMS = (
    "system",
    "jobs",
    "drawings",
    "networks",
    "datasets",
    "trainings",
    "runs",
    "styles",
    "comparing",
    "models",
)
REFUSED = {
    400: {"description": "What was asked cannot be done; `detail` says why"},
    404: {"description": "It is not there"},
}


def add(app: FastAPI, site: "Site") -> None:
    """Add every room, and the webui's own endpoints."""
    for room in ROOMS:
        router = APIRouter(prefix="/api/v1", tags=[room], responses=REFUSED)  # type: ignore[arg-type]
        import_module(f"{__name__}.{room}").add(router, site)
        app.include_router(router)
    import_module(f"{__name__}.sdapi").add(app, site)
