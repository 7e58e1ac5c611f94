"""`hyperbrush ldm train`: a run of a first stage or a diffusion model, from its config to the finished folder."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hyperbrush.files import write_json
from hyperbrush.ldm.util import read_yaml
from hyperbrush.training.before.preflight import Preflight
from hyperbrush.training.ldm.config import Run, kind_of
from hyperbrush.training.ldm.run import build, open_origin, run_preflight
from hyperbrush.training.loop.going_on import resumed
from hyperbrush.training.loop.objectives import Objective
from hyperbrush.training.loop.processes import is_main, prepared
from hyperbrush.training.loop.progress import PrepareCallback, Progress
from hyperbrush.training.loop.run_folder import opened_run
from hyperbrush.training.loop.settings import merge_settings, write_settings
from hyperbrush.training.loop.trainer import Trainer


def settings_of(
    source: Path, *, settings: Sequence[str] = (), training: Mapping[str, Any] | None = None, **given: Any
) -> Run:
    """A config's settings; those given win over it, see `merge_settings`.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    values = read_yaml(source)
    found: Run = merge_settings(kind_of(values), None, values, settings=settings, training=training, **given)
    return found


def settings_to_go_on(
    run: Path,
    *,
    at: int | None = None,
    settings: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    **given: Any,
) -> tuple[Run, bool]:
    """The settings of a run that goes on, and whether they differ from those it has; see `resumed`.

    Raises:
        UserError: see `resumed`.
    """
    kind = kind_of(read_yaml(run / "config.yaml"))
    return resumed(kind, run, at=at, settings=settings, training=training, **given)


def train_ldm(
    config: Run,
    run: Path,
    *,
    resume: bool = False,
    at: int | None = None,
    changed: bool = False,
    on_report: Callable[[Preflight], None] | None = None,
    on_prepare: PrepareCallback | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train in a run folder, which is locked and looked at before anything is written; returns the finished folder.

    Args:
        config, run: what and where.
        resume, at: see `Trainer.train`.
        changed: these settings take the place of those in the run that goes on.
        on_report: told the preflight's report, before anything is encoded.
        on_prepare: called with (what, done, in all) while pictures are looked at and encoded.
        on_progress, should_stop: see `Trainer`; before the first step a stop is obeyed at once.

    Raises:
        UserError: whatever is wrong with data, models or settings; another training is there.
        Interrupted: `should_stop` said so; the run can be resumed.
    """

    def begin() -> Objective:
        opened, report = open_origin(config), None
        if is_main() and not resume:
            progress = None if on_prepare is None else partial(on_prepare, "looking at")
            report = run_preflight(config, opened, progress)
            if on_report is not None:
                on_report(report)
        told = on_prepare if is_main() else None
        objective = build(
            config, run, told, resume=resume, opened=opened, look=None if report is None else report.look
        )
        if report is not None:
            write_settings(config, run)
            write_json(run / "preflight.json", report.as_dict())
        return objective

    with opened_run(run, resume=resume, at=at):
        objective = prepared(run, begin, should_stop)
        trainer = Trainer(objective, config.training, run, on_progress=on_progress, should_stop=should_stop)
        on_begin = partial(write_settings, config, run) if changed else None
        return trainer.train(resume=resume, at=at, held=True, on_begin=on_begin)
