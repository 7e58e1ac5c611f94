"""The queue of a sweep's trials: Optuna's, in a database that several processes and machines share."""

import contextlib
import datetime
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hyperbrush.errors import UserError
from hyperbrush.training.sweep.settings import Sweep, shown

if TYPE_CHECKING:
    import optuna

GRACE = 4  # heartbeats without a sign of life, then a worker counts as dead
RETRIES = 3  # times a trial is taken up again whose worker died
DATABASE = "sweep.db"  # in a sweep's folder, where no other is named
log = logging.getLogger(__name__)


class Failed(Exception):
    """A trial that ended in an error; the others go on."""


class Queue:
    """Hands out trials by their numbers, each to one worker, and those of dead workers again.

    What a trial came to is not the queue's to know: it lies in the trial's folder.
    """

    def __init__(self, study: "optuna.Study", sweep: Sweep) -> None:
        self.study, self.sweep = study, sweep
        self.choices: dict[str, list[str]] = {}
        for trial in sweep.trials:
            for name, value in trial.settings.items():
                known = self.choices.setdefault(name, [])
                known.extend({shown(value)}.difference(known))

    def fill(self, numbers: Sequence[int]) -> list[int]:
        """Queue the trials that neither wait nor run; returns those whose workers died too often."""
        from optuna.trial import TrialState

        attempts: dict[int, list[optuna.trial.FrozenTrial]] = {}
        for attempt in self.study.get_trials(deepcopy=False):
            attempts.setdefault(attempt.user_attrs.get("number", -1), []).append(attempt)
        hopeless = []
        for number in numbers:
            states = [attempt.state for attempt in attempts.get(number, [])]
            if TrialState.WAITING in states:
                continue
            if TrialState.RUNNING in states:
                self._bury(attempts[number])
            elif states.count(TrialState.FAIL) > RETRIES:
                hopeless.append(number)
            else:
                params = {key: shown(v) for key, v in self.sweep.trials[number].settings.items()}
                self.study.enqueue_trial(params, user_attrs={"number": number})
        return hopeless

    def _bury(self, attempts: "Sequence[optuna.trial.FrozenTrial]") -> None:
        """End attempts whose worker died before its first heartbeat, which Optuna would wait for for ever."""
        from optuna.trial import TrialState

        for attempt in attempts:
            begun = attempt.user_attrs.get("begun") == attempt.number
            if attempt.state is not TrialState.RUNNING or begun or attempt.datetime_start is None:
                continue
            age = datetime.datetime.now() - attempt.datetime_start
            if age.total_seconds() > GRACE * self.sweep.config.heartbeat:
                with contextlib.suppress(ValueError, RuntimeError):  # another was faster
                    self.study.tell(attempt.number, state=TrialState.FAIL)

    def revive(self) -> None:
        """Queue again what dead workers held."""
        import optuna

        with _quiet():
            optuna.storages.fail_stale_trials(self.study)

    def is_waiting(self) -> bool:
        """Whether there is a trial to take."""
        from optuna.trial import TrialState

        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def take(self, work: Callable[[int], float]) -> None:
        """Do the next trial that waits, if another worker was not faster.

        work: number → validation loss.  `Failed` ends the trial; all else it raises leaves it to be done, and is
        raised here.
        """
        import optuna

        ended: list[BaseException | None] = []  # how the work did; an error that leaves it to be done

        def objective(attempt: optuna.Trial) -> float:
            number = attempt.user_attrs.get("number")
            if number is None:
                raise optuna.TrialPruned("nothing was waiting any more")
            try:
                attempt.set_user_attr("begun", attempt.number)
                attempt.set_user_attr("worker", f"{socket.gethostname()} {os.getpid()}")
                for name in self.sweep.trials[number].settings:  # for Optuna's own tools
                    attempt.suggest_categorical(name, self.choices[name])
                loss = work(number)
            except Failed as error:
                ended.append(None)
                attempt.set_user_attr("error", str(error))
                raise
            except BaseException as error:
                ended.append(error)
                raise optuna.TrialPruned from error
            ended.append(None)
            return loss

        try:
            self.study.optimize(objective, n_trials=1, catch=(Failed,))
        except Exception as error:
            # Others took this worker for dead, say, because the laptop slept. Optuna says so in several ways.
            if not ended:
                raise
            log.info("the engine could not be told how a trial ended, but its folder knows: %s", error)
        if ended and ended[0] is not None:
            raise ended[0]


@contextlib.contextmanager
def open_queue(sweep: Sweep) -> Iterator[Queue]:
    """The queue of a sweep, made where it does not exist; Optuna is quiet meanwhile.

    Raises:
        UserError: Optuna is missing; the database cannot be opened.
    """
    try:
        import optuna
        from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    except ImportError as error:
        raise UserError(
            f"hyperbrush sweep needs the package optuna, 4.9 or newer ({error}); pip install 'hyperbrush[sweep]'"
        ) from error
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    config = sweep.config
    url = os.path.expandvars(config.storage) or f"sqlite:///{(sweep.folder / DATABASE).resolve()}"
    options: Mapping[str, Any] = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with _quiet():
            storage = RDBStorage(
                url,
                engine_kwargs=dict(options),
                heartbeat_interval=config.heartbeat,
                grace_period=GRACE * config.heartbeat,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
            )
        study = optuna.create_study(storage=storage, study_name=config.study, load_if_exists=True)
    except (SQLAlchemyError, ImportError, OSError, optuna.exceptions.OptunaError) as error:
        optuna.logging.set_verbosity(before)
        reason = str(error.__cause__ or error).partition("\n")[0]
        shape = ", expected a URL such as postgresql://user@host/database"
        raise UserError(
            f"cannot open the sweep's database {_without_password(url)}: {reason}"
            + (shape if isinstance(error, ArgumentError) else "; is it running, and its driver installed?")
        ) from error
    try:
        yield Queue(study, sweep)
    finally:
        storage.remove_session()
        storage.engine.dispose()
        optuna.logging.set_verbosity(before)


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that heartbeats may change in other versions."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
