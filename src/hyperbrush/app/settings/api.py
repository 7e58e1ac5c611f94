"""How the app stands, and what it prefers."""

from typing import Any

from fastapi import APIRouter

from hyperbrush import __version__
from hyperbrush.app.settings import service as choices
from hyperbrush.app.site import Site


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room."""

    @router.get("/status")
    def status() -> dict[str, Any]:
        """Version, workers, their deaths, and what waits."""
        jobs = site.jobs.open()
        devices = sorted({job.device for job in jobs} | {site.device})
        return {
            "version": __version__,
            "workspace": str(site.workspace.root),
            "model": site.workspace.preferences.model,
            "device": site.device,
            "workers": [site.worker(device) for device in devices],
            "deaths": [{"device": d.device, "when": d.when, "log": d.log} for d in site.keeper.crashes],
            "running": [job.id for job in jobs if job.state == "running"],
            "queued": [job.id for job in jobs if job.state == "queued"],
        }

    @router.get("/preferences")
    def preferences() -> dict[str, Any]:
        """What is preferred."""
        return site.workspace.preferences.model_dump()

    @router.patch("/preferences")
    def prefer(changes: dict[str, Any]) -> dict[str, Any]:
        """Change some of it."""
        return choices.prefer(site, changes).model_dump()

    @router.get("/devices")
    def devices() -> list[dict[str, Any]]:
        """Devices of this machine, and the precisions that each computes in."""
        return [
            {"device": device, "about": about, "precisions": choices.precisions(device)}
            for device, about in choices.devices().items()
        ]

    @router.get("/workers")
    def workers() -> list[dict[str, Any]]:
        """How the workers stand: the preferred device's, and every other that was ever started."""
        return choices.workers(site)

    @router.post("/workers/{device}/restart")
    def restart(device: str, now: bool = False) -> dict[str, Any]:
        """End a worker after its present step (or now); another goes on with its work."""
        return choices.restart(site, device, now=now)

    @router.get("/samplers")
    def samplers() -> list[str]:
        """Names of the samplers."""
        from hyperbrush.ldm.sampling.samplers import sampler_names

        return sampler_names()
