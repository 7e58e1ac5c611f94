"""The webui's lists: checkpoints, schedules, networks, and those of what is not here, which are empty."""

from typing import Any

from fastapi import APIRouter

from hyperbrush.app.model import service as base_models
from hyperbrush.app.networks.loras import files
from hyperbrush.app.settings import service as choices
from hyperbrush.app.site import Site
from hyperbrush.app.webui.options import title
from hyperbrush.errors import UserError
from hyperbrush.ldm.sampling.names import UPSCALERS

# What enlarges for a second pass: `hr_upscaler` takes both kinds.
UPSCALING = {
    "upscalers": [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
        for name, latent in UPSCALERS.items()
        if latent is None
    ],
    "latent-upscale-modes": [{"name": name} for name, latent in UPSCALERS.items() if latent is not None],
}
# What clients ask for and there is none of.
EMPTY: dict[str, Any] = {
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "sd-vae": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [],
    "extensions": [],
    "cmd-flags": {},
}


def add(router: APIRouter, site: Site) -> None:
    """Add the routes."""

    @router.get("/hypernetworks")
    def hypernetworks() -> list[dict[str, str]]:
        """Names and files."""
        library = site.workspace.library
        return [{"name": name, "path": str(path)} for name, path in library.files().items()]

    router.get("/samplers")(samplers)

    router.get("/schedulers")(schedules)

    @router.get("/sd-models")
    def models() -> list[dict[str, Any]]:
        """Base models."""
        return checkpoints(site)

    router.get("/memory")(memory)

    @router.get("/loras")
    @router.get("/lycos", name="lycos")  # one kind to newer webuis
    def lora_files() -> list[dict[str, Any]]:
        """LoRA files that prompts can name."""
        return loras(site)

    @router.post("/unload-checkpoint")
    def unload() -> dict[str, Any]:
        """Free the models' memory."""
        if any(job.state == "running" for job in site.jobs.open()):
            raise UserError("a job is running with the model: wait until it is done, or interrupt it")
        choices.restart(site, site.device)
        return {}

    @router.post("/reload-checkpoint")
    def reload() -> dict[str, Any]:
        """A model is read with the first picture that needs it: nothing needs to be done."""
        return {}

    @router.get("/extra-networks")
    def extra_networks(
        page: str | None = None, name: str | None = None, filename: str | None = None, hash: str | None = None
    ) -> list[dict[str, Any]]:
        """Base models, hypernetworks and LoRAs; page: checkpoint, hypernetwork or lora."""
        wanted = {"type": page, "name": name, "filename": filename, "hash": hash}
        return [
            one
            for one in _extra_networks(site)
            if all(
                value is None or str(one[key]).casefold() == value.casefold() for key, value in wanted.items()
            )
        ]

    for path, value in {**UPSCALING, **EMPTY}.items():
        router.add_api_route(f"/{path}", _always(value), methods=["GET"], name=path)
    for what in ("checkpoints", "vae", "embeddings", "loras"):
        router.add_api_route(f"/refresh-{what}", _refresh(site), methods=["POST"], name=f"refresh-{what}")


def _always(value: Any) -> Any:
    def empty() -> Any:
        """What the webui lists here and hyperbrush does not have."""
        return value

    return empty


def _refresh(site: Site) -> Any:
    def refresh() -> None:
        """Folders are read again at each question: nothing needs to be done."""
        site.news("networks")

    return refresh


def checkpoints(site: Site) -> list[dict[str, Any]]:
    """Base models; a new one is read once for its hash."""
    return [
        {
            "title": title(model.name, model.hash),
            "model_name": model.name,
            "hash": model.hash or None,
            "sha256": None,
            "filename": model.source,
            "config": None,
        }
        for model in base_models.found(site.workspace, hashes=True)
        if not model.error
    ]


def schedules() -> list[dict[str, Any]]:
    """Noise schedules by the webui's names."""
    from hyperbrush.ldm.sampling.samplers import AUTOMATIC_SCHEDULE, SCHEDULES

    labels = [AUTOMATIC_SCHEDULE, "Uniform", *SCHEDULES]
    return [
        {
            "name": label.casefold().replace(" ", "_"),
            "label": label,
            "aliases": [],
            "default_rho": 7.0 if label == "Karras" else -1.0,
            "need_inner_model": label in ("SGM Uniform", "Simple"),
        }
        for label in labels
    ]


def samplers() -> list[dict[str, Any]]:
    """Samplers, those that newer webuis name with a schedule beside among them."""
    from hyperbrush.ldm.sampling.samplers import SAMPLERS

    return [{"name": name, "aliases": list(one.spellings), "options": {}} for name, one in SAMPLERS.items()]


def memory() -> dict[str, Any]:
    """Bytes of this machine's memory; of a GPU's nothing is said."""
    import psutil

    found = psutil.virtual_memory()
    return {
        "ram": {"free": found.available, "used": found.used, "total": found.total},
        "cuda": {"error": "not told here"},
    }


def loras(site: Site) -> list[dict[str, Any]]:
    """LoRA files beside the hypernetworks, as the webui's extension lists them."""
    return [
        {"name": name, "alias": name, "path": str(path), "metadata": {}}
        for name, path in files(site.workspace).items()
    ]


def _extra_networks(site: Site) -> list[dict[str, Any]]:
    """Checkpoints, hypernetworks and LoRAs in one list, as SD.Next's API has it."""
    library = site.workspace.library
    found = [
        _entry(one["model_name"], "checkpoint", one["title"], one["filename"], one["hash"])
        for one in checkpoints(site)
    ]
    found += [
        _entry(entry.name, "hypernetwork", entry.name, str(entry.path), entry.short_hash, prompt=_tag(entry))
        for entry in library.entries()
        if entry.error is None
    ]
    return found + [
        _entry(one["name"], "lora", one["name"], one["path"], None, prompt=f"<lora:{one['name']}:1>")
        for one in loras(site)
    ]


def _tag(entry: Any) -> str:
    strength = entry.notes.preferred_weight
    words = f" {entry.notes.activation_text}" if entry.notes.activation_text else ""
    return f"<hypernet:{entry.name}:{strength or 1:g}>{words}"


def _entry(
    name: str, kind: str, shown: str, file: str, digest: str | None, prompt: str = ""
) -> dict[str, Any]:
    return {
        "name": name,
        "type": kind,
        "title": shown,
        "fullname": shown,
        "filename": file,
        "hash": digest,
        "preview": "",
        "prompt": prompt,
    }
