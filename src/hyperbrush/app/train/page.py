"""The page "Train": pictures and captions, settings, the plan, the start."""

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from nicegui import ui

from hyperbrush.app.site import Site
from hyperbrush.app.train import page_pictures as train_pictures
from hyperbrush.app.train import page_settings as train_settings
from hyperbrush.app.train import page_start as train_start
from hyperbrush.app.train.datasets import Datasets
from hyperbrush.app.train.draft import EMPTY, Draft
from hyperbrush.app.train.service import cloned
from hyperbrush.app.ui.frame import PATIENCE, frame, refusals
from hyperbrush.errors import UserError


def add(site: Site) -> None:
    """Add the page."""

    @ui.page("/train", response_timeout=PATIENCE)
    async def page(request: Request, clone: str = "", dataset: str = "") -> Response | None:
        draft, datasets = Draft(site.workspace), Datasets(site.workspace)
        refused = ""
        if clone or dataset:  # once: a reload must not undo what was changed since
            try:
                if clone:
                    settings = cloned(site.workspace, site.runs.get(clone).config)
                    draft.keep(**{**EMPTY, "presets": "", "settings": settings})
                else:
                    datasets.folder(dataset)
                    draft.put("data", [{"path": dataset}])
                return RedirectResponse("/train")
            except UserError as error:
                refused = str(error)
        ui.add_head_html('<script src="/static/train.js" defer></script>')
        with frame(site, request, "train") as t:
            if refused:
                ui.label(refused).classes("notice bad").props("role=alert")
            gallery = train_pictures.Pictures(t, draft, datasets)
            train_settings.build(t, draft, datasets, site.workspace)
            train_start.build(site, t, draft)
            with refusals():
                await gallery.show()
        return None
