"""To come."""

from fastapi import APIRouter

from hyperbrush.app.site import Site


def add(router: APIRouter, site: Site) -> None:
    """Add the routes of this room."""
