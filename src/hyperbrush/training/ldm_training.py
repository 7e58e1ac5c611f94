"""`hyperbrush ldm train`: a run of a first stage or a diffusion model, from its config to the finished folder."""

from collections.abc import Callable
from pathlib import Path

from hyperbrush.ldm.util import read_yaml
from hyperbrush.training.caller import AccelerateStates, generators_kept
from hyperbrush.training.going_on import resumed
from hyperbrush.training.ldm_run import Run, build, read_config, save_config
from hyperbrush.training.processes import is_main
from hyperbrush.training.progress import Progress
from hyperbrush.training.run_folder import opened_run
from hyperbrush.training.settings import from_everywhere
from hyperbrush.training.trainer import Trainer


def settings_of(source: Path, *, steps: int | None = None) -> Run:
    """A config's settings; steps in place of its own.

    Raises:
        UserError: see `read_config`.
    """
    kind = type(read_config(source))
    return from_everywhere(kind, None, read_yaml(source), training={"steps": steps})


def settings_to_go_on(run: Path, *, at: int | None = None, steps: int | None = None) -> tuple[Run, bool]:
    """The settings of a run that goes on, and whether they differ from those it has; see `resumed`.

    Raises:
        UserError: see `resumed`.
    """
    kind = type(read_config(run / "config.yaml"))
    return resumed(kind, run, at=at, training={"steps": steps})


def train_ldm(
    config: Run,
    run: Path,
    *,
    resume: bool = False,
    at: int | None = None,
    changed: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train in a run folder, which is locked and looked at before anything is written; returns the finished folder.

    Args:
        config, run: what and where.
        resume, at: see `Trainer.train`.
        changed: these settings take the place of those in the run that goes on.
        on_progress, should_stop: see `Trainer`.

    Raises:
        UserError: whatever is wrong with data, models or settings; another training is there.
        Interrupted: `should_stop` said so; the run can be resumed.
    """
    from accelerate import PartialState

    def keep() -> None:
        if changed or not resume:
            save_config(config, run)

    with AccelerateStates().entered(), generators_kept(), opened_run(run, resume=resume, at=at):
        with PartialState().main_process_first():  # the others find all of it encoded
            objective = build(config, run, resume=resume)
        if is_main() and not resume:
            save_config(config, run)
        trainer = Trainer(objective, config.training, run, on_progress=on_progress, should_stop=should_stop)
        return trainer.train(resume=resume, at=at, held=True, on_begin=keep)
