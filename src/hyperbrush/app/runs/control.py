"""What the user does to a run: pause, stop, finish, resume, roll back, put into the bin and take it out."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any, Literal

from hyperbrush.app.runs.run import JOB_KINDS, OPEN, Run
from hyperbrush.app.site import Site
from hyperbrush.errors import UserError
from hyperbrush.trash import TrashItem


def ask(site: Site, name: str, how: Literal["pause", "stop", "finish"]) -> Run:
    """Pause it, stop it, or end it and keep what it learned; a run that waits ends at once, else after its step.

    A run that does not train is finished by a job of its own.

    Raises:
        UserError: there is none of that name, or it cannot be asked that as it stands.
    """
    with _changing(site, name) as run:
        if run.state in OPEN:
            _check(site, run, how)
            if how == "finish" and run.state == "queued" and max(run.checkpoints, default=0) < 1:
                raise UserError(f"run {name!r} has learned nothing yet: let it train, or stop it")
            if how == "finish" and run.state == "queued":
                site.jobs.ask(run.job, "stop")
                _submit(site, run, finish=True)
            else:
                site.jobs.ask(run.job, how)
        elif how == "finish":
            _check(site, run, how)
            _submit(site, run, finish=True)
        else:
            raise UserError(f"run {name!r} is {run.state}: there is nothing to {how}")
    return site.runs.get(name)


def resume(site: Site, name: str) -> Run:
    """Go on from its newest checkpoint, or from the beginning where there is none.

    Raises:
        UserError: there is none of that name, or it cannot go on.
    """
    with _changing(site, name) as run:
        _check(site, run, "resume")
        _submit(site, run)
    return site.runs.get(name)


def roll_back(site: Site, name: str, step: int) -> Run:
    """Drop what came after a checkpoint, and train on from there.

    Dropped are the later checkpoints and previews (at once) and figures (when it goes on); finished copies stay.

    Raises:
        UserError: there is none of that name or step, it cannot be done now, or the checkpoint is damaged.
    """
    from hyperbrush.training.loop import checkpoint
    from hyperbrush.training.loop.run_folder import run_lock
    from hyperbrush.training.report.contact_sheet import find_previews

    with _changing(site, name) as run:
        _check(site, run, "rollback")
        if step not in run.checkpoints:
            there = ", ".join(map(str, run.checkpoints))
            raise UserError(f"run {name!r} has no checkpoint at step {step}; there are: {there}")
        folder = site.runs.folder(name)
        with run_lock(folder):
            checkpoint.load(checkpoint.path_of(folder / "checkpoints", step))  # before the others go
            checkpoint.drop(folder / "checkpoints", dropped(run, step))
            for at, path in find_previews(folder).items():
                if at > step:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        _submit(site, run)
    return site.runs.get(name)


def dropped(run: Run, step: int) -> list[int]:
    """Steps of the checkpoints that going back to a step loses."""
    return [at for at in run.checkpoints if at > step]


def remove(site: Site, name: str) -> TrashItem:
    """Put a run's folder into the bin.

    Raises:
        UserError: there is none of that name, it trains or waits, or it cannot be moved.
    """
    from hyperbrush.training.loop.run_folder import run_lock

    with _changing(site, name) as run:
        _check(site, run, "delete")
        folder = site.runs.folder(name)
        with run_lock(folder):
            pass  # nobody trains in it, whatever running.json says
        return site.workspace.trash.put("run", name, [folder])


def restore(site: Site, item: str) -> Run:
    """Put a run back from the bin to where it was.

    Raises:
        NotThere: there is nothing of that id.
        UserError: another run has its name now, or it cannot be moved.
    """
    with site.runs.changing:
        found = site.workspace.trash.get("run", item)
        try:
            moves = {folder: site.workspace.folder("runs") / found.name for folder in found.files}
            site.workspace.trash.restore(found, moves)
        except FileExistsError as error:  # under another name its file would meet that run's
            raise UserError(
                f"there is another run {found.name!r} now: remove that first, then restore this one"
            ) from error
    site.news("runs", f"run:{found.name}")
    return site.runs.get(found.name)


def erase(site: Site, item: str) -> TrashItem:
    """Remove a run in the bin for good.

    Raises:
        UserError: as `Trash.erase`.
    """
    with site.runs.changing:
        found = site.workspace.trash.erase("run", item)
    site.news("runs")
    return found


@contextlib.contextmanager
def _changing(site: Site, name: str) -> Iterator[Run]:
    """One change at a time: a button pressed twice must not start two trainings."""
    with site.runs.changing:
        yield site.runs.get(name)
    site.news("jobs", "runs", f"run:{name}")


def _check(site: Site, run: Run, what: str) -> None:
    if what in run.can:
        return
    if run.elsewhere:
        from hyperbrush.training.loop.run_folder import holder

        raise UserError(
            f"run {run.name!r} is trained by a process outside of the app ({holder(site.runs.folder(run.name))}): end it "
            "there (Ctrl-C), then it can go on here; one on a machine that is gone counts no more after five minutes"
        )
    if run.state in OPEN:
        raise UserError(f"run {run.name!r} is {run.state}: pause or stop it first")
    if run.kind not in JOB_KINDS and what != "delete":
        raise UserError(f"the app trains no run of kind {run.kind!r}; its config.yaml says that it is one")
    if what == "rollback":
        raise UserError(f"run {run.name!r} has no checkpoint to go back to")
    if what == "finish" and run.state != "done":
        raise UserError(f"run {run.name!r} has learned nothing yet: resume it")
    raise UserError(f"run {run.name!r} is done: roll it back to a checkpoint, or train its clone")


def _submit(site: Site, run: Run, **more: Any) -> None:
    site.submit(JOB_KINDS[run.kind], {"run": run.name, **more})
