"""What the user chooses about the app: preferences checked against this machine, the base model, the workers."""

import os
from pathlib import Path
from typing import Any

import psutil

from hyperbrush.app.jobs.jobs import Job
from hyperbrush.app.jobs.worker import lives, worker_file
from hyperbrush.app.model import service as base_models
from hyperbrush.app.site import Site
from hyperbrush.app.workspace import FOLDERS, Preferences, Workspace, preferences_from
from hyperbrush.errors import NotThere, UserError
from hyperbrush.files import read_json


def devices() -> dict[str, str]:
    """Devices of this machine by the word that `device` takes, with what each is called."""
    import torch

    found = {"cpu": f"{os.cpu_count()}"}
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found["cuda" if number == 0 else f"cuda:{number}"] = torch.cuda.get_device_name(number)
    if torch.backends.mps.is_available():
        found["mps"] = "Apple"
    return found


def precisions(device: str) -> list[str]:
    """Precisions that a device computes in."""
    import torch

    from hyperbrush.ldm.models.device import PRECISION, placement

    kind = placement(device).device.type
    slow = {"cpu": ("fp16",), "mps": ("bf16",)}.get(kind, ())
    if kind == "cuda" and not torch.cuda.is_bf16_supported():
        slow = ("bf16",)
    return ["auto", *(name for name in PRECISION if name not in slow)]


def prefer(site: Site, changes: dict[str, Any]) -> Preferences:
    """Change preferences, all of them or none.

    Raises:
        UserError: an unknown one, or one that cannot be used on this machine: everything that is wrong.
    """
    now = site.workspace.preferences
    new = preferences_from({**now.model_dump(), **changes})
    changed = {key for key in changes if getattr(new, key) != getattr(now, key)}
    wrong = []
    if changed & {"device", "precision"}:
        wrong += _wrong_device(new)
    for name in FOLDERS:
        if name in changed:
            wrong += _wrong_folder(site.workspace, name, str(getattr(new, name)))
    if "model" in changed:
        try:
            _check_model(site.workspace, new.model)
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("; ".join(wrong))
    return site.workspace.prefer(**changes)


def use_model(site: Site, source: str) -> Job:
    """Have the worker open a base model, which is preferred once it has drawn.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    _check_model(site.workspace, source)
    return site.submit("try-model", {"model": source, "use": True})


def workers(site: Site) -> list[dict[str, Any]]:
    """How the workers stand: the preferred device's, and every other that was ever started."""
    found = {str(read_json(p).get("device", "")) for p in site.workspace.state.glob("worker-*.json")}
    return [site.worker(device) for device in sorted({site.device, *found} - {""})]


def restart(site: Site, device: str, *, now: bool = False) -> dict[str, Any]:
    """End a device's worker after its present step, or at once; the server starts another, which goes on with the work.

    Raises:
        UserError: there is no such worker, or it does not run.
    """
    known = {worker["device"] for worker in workers(site)}
    if device not in known:
        raise NotThere(
            f"there is no worker of a device {device!r:.40}; there are: {', '.join(sorted(known))}"
        )
    said = read_json(worker_file(site.workspace.state, device))
    if not lives(said):
        raise UserError(f"the worker of {device} does not run; it is started within a few seconds")
    try:
        process = psutil.Process(int(said["pid"]))
        if now:
            process.kill()
        else:
            process.terminate()
    except psutil.Error as error:
        raise UserError(f"the worker of {device} cannot be ended: {error}") from error
    return {"device": device, "pid": said["pid"]}


def doctor_file(site: Site, job: str, what: str) -> Path:
    """The doctor's page or picture.

    Raises:
        NotThere: no such job, or it has none (yet).
    """
    found = site.jobs.get(job)
    name = found.result.get(what) if found.kind == "doctor" else None
    path = site.jobs.folder / found.id / str(name)
    if not name or not path.is_file():
        raise NotThere(f"job {job:.40} has no {what} of the doctor: it is {found.kind}, {found.state}")
    return path


def _check_model(workspace: Workspace, source: str) -> None:
    if error := base_models.describe(workspace, source).error:
        raise UserError(f"model {source!r:.200}: {error}")


def _wrong_device(new: Preferences) -> list[str]:
    from hyperbrush.ldm.models.device import placement

    try:
        placement(new.device, new.precision)
        able = precisions(new.device)
    except UserError as error:
        return [str(error)]
    if new.precision not in able:
        return [
            f"precision {new.precision} is not computed on {new.device} here; take one of {', '.join(able)}"
        ]
    return []


def _wrong_folder(workspace: Workspace, name: str, value: str) -> list[str]:
    path = Path(os.path.normpath(workspace.root / value))
    if path.is_relative_to(workspace.state) or path in (workspace.root, *workspace.root.parents):
        return [f"{name}: {value!r:.200} cannot be it: expected a folder of its own, such as models/{name}"]
    if not Path(value).is_absolute() and not path.is_relative_to(workspace.root):
        return [
            f"{name}: {value!r:.200} leaves the folder of the app; a folder elsewhere is written whole, {path}"
        ]
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:  # a name that is too long, a file in the way
        return [f"{name}: {value!r:.200} cannot be it: {error.strerror or error}"]
    if path.exists() and not path.is_dir():
        return [f"{name}: {path} is a file; expected a folder"]
    there = next(p for p in (path, *path.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return [f"{name}: {there} cannot be written to; choose another folder"]
    return []
