"""`hyperbrush ldm train`: a run of a first stage or a diffusion model, from its config to the finished folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperbrush.files import write_json
from hyperbrush.ldm.util import read_yaml
from hyperbrush.training.before.preflight import Preflight
from hyperbrush.training.data.cached import Told
from hyperbrush.training.ldm.config import Run, kind_of, save_config
from hyperbrush.training.ldm.run import build, look_over, open_origin
from hyperbrush.training.loop.caller import AccelerateStates, generators_kept
from hyperbrush.training.loop.going_on import resumed
from hyperbrush.training.loop.objectives import Objective
from hyperbrush.training.loop.processes import is_main, prepared
from hyperbrush.training.loop.progress import Progress
from hyperbrush.training.loop.run_folder import opened_run
from hyperbrush.training.loop.settings import from_everywhere
from hyperbrush.training.loop.trainer import Trainer


def settings_of(
    source: Path, *, settings: Sequence[str] = (), training: Mapping[str, Any] | None = None, **given: Any
) -> Run:
    """A config's settings; those given win over it, see `from_everywhere`.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    values = read_yaml(source)
    found: Run = from_everywhere(kind_of(values), None, values, settings=settings, training=training, **given)
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
    on_prepare: Told | None = None,
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
    told = on_prepare or (lambda what, done, of: None)
    reports: list[Preflight] = []

    def begin() -> Objective:
        opened = open_origin(config)
        if is_main() and not resume:
            reports.append(look_over(config, opened, lambda done, of: told("looking at", done, of)))
            if on_report is not None:
                on_report(reports[0])
        return build(config, run, told if is_main() else None, resume=resume, opened=opened)

    def keep() -> None:
        if changed or not resume:
            save_config(config, run)

    with AccelerateStates().entered(), generators_kept(), opened_run(run, resume=resume, at=at):
        objective = prepared(run, begin, should_stop)
        if reports:
            save_config(config, run)
            write_json(run / "preflight.json", reports[0].as_dict())
        trainer = Trainer(objective, config.training, run, on_progress=on_progress, should_stop=should_stop)
        return trainer.train(resume=resume, at=at, held=True, on_begin=keep)
