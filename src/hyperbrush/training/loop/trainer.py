"""The loop: step, log, validate, preview, checkpoint; on Accelerate."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.util import keyed_seed
from hyperbrush.training.data.seen import changed_pictures
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.caller import AccelerateStates, modes_kept
from hyperbrush.training.loop.clipping import Clipping
from hyperbrush.training.loop.config import OptimizerConfig, TrainerConfig
from hyperbrush.training.loop.judge import good_steps, last_good
from hyperbrush.training.loop.metrics import Metrics
from hyperbrush.training.loop.micro_batches import MicroBatches, is_out_of_memory
from hyperbrush.training.loop.objectives import Objective
from hyperbrush.training.loop.optimizers import begin_training, configured, rate_scales
from hyperbrush.training.loop.processes import check_precision, join, on_main, share_from_main, worst
from hyperbrush.training.loop.progress import Interrupted as Interrupted
from hyperbrush.training.loop.progress import Live, NotFinite
from hyperbrush.training.loop.progress import Progress as Progress
from hyperbrush.training.loop.rates import OwnRate, RateSchedule
from hyperbrush.training.loop.run_folder import made_with, opened_run
from hyperbrush.training.loop.state import BackOff, State
from hyperbrush.training.loop.trackers import begin_trackers, make_trackers, show_previews

log = logging.getLogger(__name__)

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class Trainer:
    """Minimises one objective in one run folder, which it locks.

    n steps in one go equal k steps, a resume and n - k steps, to the bit on the CPU (of one machine, with the
    same versions): batches and noise are functions of (seed, step), and the checkpoint holds the parameters,
    the optimizer's state, the moving average and the number of threads.  The learning rate is a function of the step and set here, so that no scheduler
    can count processes.  Under `accelerate launch` each process computes its rows of the same batch; the
    main one alone writes.  Accelerate's states, the global generators and the objective's modes are left as
    they were found.

    Args:
        objective: what to train.
        config: how.
        run: folder for checkpoints/, previews/, metrics.jsonl.
        on_progress: called after each step, on the main process.
        should_stop: asked after each step; True on any process saves and raises `Interrupted` on all.
        optimizer_factory: makes an optimizer of parameter groups, instead of the config's.
        learning_rate: from the steps made to the rate of the next, instead of the config's schedule, see `OwnRate`.

    Raises:
        UserError: nothing is trainable; a precision that the device has not; the batch cannot be cut into its parts; FSDP or the like.
    """

    def __init__(
        self,
        objective: Objective,
        config: TrainerConfig,
        run: str | Path,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        optimizer_factory: OptimizerFactory | None = None,
        learning_rate: Callable[[int], float] | None = None,
    ) -> None:
        self.own_rate = None if learning_rate is None else OwnRate(learning_rate)
        self.objective, self.config, self.run = objective, config, Path(run)
        self.folder = self.run / "checkpoints"
        self.on_progress, self.should_stop = on_progress, should_stop
        self._states = AccelerateStates()
        with self._states.entered(), modes_kept(objective):
            self._prepare(optimizer_factory)
        self.events: list[dict[str, Any]] = []  # not yet written
        self.metrics: Metrics | None = None  # of the main process
        self.live = Live(self.run / "live.json")

    def _prepare(self, optimizer_factory: OptimizerFactory | None) -> None:
        from accelerate import Accelerator

        objective, config = self.objective, self.config
        device, log_with = join(), make_trackers(config.trackers, self.run) or None
        check_precision(config.mixed_precision, device)
        try:
            self.accelerator = Accelerator(
                mixed_precision=config.mixed_precision, log_with=log_with, project_dir=str(self.run)
            )
        except ValueError as error:  # an old torch on Apple's GPUs, a device without such numbers
            raise UserError(
                f"mixed_precision {config.mixed_precision} on {device}: {error}; take another, or no"
            ) from error
        if self.accelerator.distributed_type.value in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise UserError(
                f"{self.accelerator.distributed_type.value} splits the weights, which checkpoints cannot hold "
                "yet; launch with plain data parallelism (--multi_gpu)"
            )
        groups = [dict(group) for group in objective.parameter_groups()]
        if not any(group["params"] for group in groups):
            raise UserError("nothing is trainable: every parameter of the objective is frozen")
        self.scales = [float(group.pop("scale", 1.0)) for group in groups]
        settings = config.optimizer
        make = optimizer_factory or partial(configured, settings, scales=self.scales)
        optimizer = make(groups)
        self.scales = rate_scales(optimizer, self.scales)
        self.rate: Callable[[int], float] = self.own_rate or RateSchedule(settings, config.steps)
        self.clip = Clipping(settings.clip, settings.max_grad_norm)
        objective.place(self.accelerator.device)
        # "evaluation": not wrapped in DDP, since `MicroBatches` averages the gradients itself; after DDP's
        # backward has begun, no process could go back when another one runs out of memory.
        module = self.accelerator.prepare_model(objective, evaluation_mode=True)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.micro = MicroBatches(
            self.accelerator, module, self.trained, config.batch_size, config.gradient_accumulation
        )
        self.state = State(objective, self.optimizer, self.accelerator.scaler, config)

    def train(
        self,
        *,
        resume: bool = False,
        at: int | None = None,
        held: bool = False,
        on_begin: Callable[[], None] | None = None,
    ) -> Path:
        """Run to `config.steps` (or until patience ends) and return what the objective saved.

        The objective is left with the weights that were saved: the best (`keep_best`), the averaged, or
        the last ones.

        Args:
            resume: go on from the newest checkpoint, or from the one ``at`` a step.
            held: the caller has the run open, see `opened_run`, with the same ``resume`` and ``at``.
            on_begin: called on the main process once nothing can be refused any more, before the first step.

        Raises:
            UserError: a run folder in use; a loss that is not finite (names the step and the pictures; the last checkpoint
                stands), no memory for one picture, a damaged checkpoint, a full disk, patience without
                held-out pictures.
            Interrupted: `should_stop` said so; a checkpoint was written.
        """
        if self.config.patience is not None and not self.objective.is_validated:
            raise UserError("patience needs held-out pictures to judge by: give some, or leave it out")
        with contextlib.ExitStack() as stack:
            if not held:
                stack.enter_context(opened_run(self.run, resume=resume, at=at))
            stack.enter_context(self._states.entered())
            stack.enter_context(modes_kept(self.objective))
            stack.callback(self._unwrap)
            if resume:
                self._go_on(at)
            share_from_main(self.accelerator, self.objective.parameters())
            on_main(self.accelerator, lambda: self._begin(stack))
            if on_begin is not None:
                on_main(self.accelerator, on_begin)
            if message := on_main(self.accelerator, lambda: changed_pictures(self.run, self.objective)):
                self._note("pictures", message)
            if self.config.keep_best and not self.objective.is_validated and self.state.step == 0:
                kept = "last" if self.state.average is None else "averaged last"
                self._note("keep_best", f"no pictures are held out to judge by: the {kept} weights are kept")
            if self.config.ema_decay is not None and self.state.average is None and self.state.step == 0:
                self._note("ema", "ema_decay is left out: this optimizer averages the weights itself")
            if self.config.trackers:
                begin_trackers(self.accelerator, self.state.step)
                stack.callback(self.accelerator.end_training)
            try:
                self._loop()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(
                    f"out of memory beside the batch, after step {self.state.step} ({error}); what is on disk is "
                    "intact. Resume on a larger device, or with smaller pictures"
                ) from error
            self.state.finish()
            self.objective.step = self.state.step if self.state.best is None else self.state.best.step
            share_from_main(self.accelerator, self.objective.parameters())  # the main one knows the best
            return on_main(self.accelerator, lambda: self.objective.save(self.run))

    def _unwrap(self) -> None:
        """Take away what Accelerate laid over the objective for mixed precision."""
        for name in ("forward", "_original_forward"):
            vars(self.objective).pop(name, None)

    def _go_on(self, at: int | None) -> None:
        """Become the newest checkpoint, or the one at a step, and say where that changes what was planned.

        Raises:
            UserError: damaged ones; one of another network; it ended early and has more steps now.
        """

        def find() -> checkpoints.Checkpoint:
            found = checkpoints.latest(self.folder, at)
            if found is None:
                raise UserError(f"{self.run} holds no checkpoint to resume from")
            return found

        found = on_main(self.accelerator, find)
        self._become(found)
        steps, plan = self.config.steps, found.extra.get("plan")
        if steps < found.step:
            raise UserError(
                f"{self.run} has made {found.step} steps already, more than the {steps} it is to have in all: "
                "give more steps, or go back to an earlier checkpoint (--at)"
            )
        if plan is None or steps <= found.step:
            return
        if self.state.judge.patience_exceeded and steps != plan["steps"]:
            raise UserError(
                f"the training ended early, at step {found.step}: no lower validation loss in "
                f"{self.state.judge.without_better} validations; to go on all the same, give a higher patience, "
                "or null (-s patience=null)"
            )
        if self.own_rate is not None:  # a function of the step alone, whatever the plan
            return
        before = RateSchedule(OptimizerConfig.model_construct(**plan["optimizer"]), plan["steps"])
        odd = next((step for step in range(found.step) if before(step) != self.rate(step)), None)
        if odd is not None:
            self._note(
                "replanned",
                f"{steps} steps from the begin would have had other learning rates ({self.rate(odd):.4g} instead of "
                f"{before(odd):.4g} at step {odd + 1}): it goes on with the new ones, not to the bit as if "
                "planned so",
            )

    def _begin(self, stack: contextlib.ExitStack) -> None:
        config, step = self.config, self.state.step
        self.metrics = Metrics(self.run / "metrics.jsonl", step)
        stack.callback(self.metrics.close)
        if 0 < step < config.steps:
            logged, validated = step % config.log_every == 0, step % config.validate_every == 0
            self.metrics.keep_to_plan(step, logged=logged, validated=validated)
            newest = max((s for s in checkpoints.steps(self.folder)), default=step)
            if newest == step:  # a kill may have come before the deletion
                checkpoints.prune(self.folder, config.keep_checkpoints, step, self._spare())
        if self.config.on_divergence == "back_off" and self.state.step == 0:
            self.checkpoint()  # there is always a state to go back to

    def _become(self, found: checkpoints.Checkpoint) -> None:
        self.state.restore(found)
        self.micro.shrink(self.state.fits)

    def _loop(self) -> None:
        begin = time.monotonic() - self.state.seconds
        self.objective.train()
        begin_training(self.optimizer)
        while self.state.step < self.config.steps and not self.state.judge.patience_exceeded:
            rate = self.rate(self.state.step) * self.state.back_off.rate_factor
            try:
                losses = self._one_step(rate)
            except NotFinite as bad:
                if self.config.on_divergence == "stop":
                    raise
                self._go_back(str(bad))
                continue
            self.state.step += 1
            self.state.seconds = time.monotonic() - begin
            if message := self.state.judge.train(self.state.step, losses["loss"]):
                if self.config.on_divergence == "back_off":
                    self._go_back(message)
                    continue
                good = on_main(self.accelerator, lambda: good_steps(self.folder, self.state.judge))
                back = f"resume at step {good[-1]}" if good else "begin anew"
                self._note(
                    "diverging", f"{message}; {back} with a lower rate", back_to=good[-1] if good else 0
                )
            self._after(losses, rate)

    def _one_step(self, rate: float) -> dict[str, float]:
        config, accelerator, step = self.config, self.accelerator, self.state.step
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        if message := self.objective.before_step(step, config.batch_size):
            share_from_main(self.accelerator, self.trained)
            self._note("renewed", message, step=step + 1)
        # Dropout and the like draw from the global generator: key it too.
        seed = keyed_seed(config.seed, "global", step, accelerator.process_index)
        before = self.micro.size
        batch, terms = self.micro.gradients(lambda: self.objective.batch(step, config.batch_size), seed)
        if self.micro.size < before:
            self.state.fits = self.micro.size
            message = (
                f"out of memory: {before} pictures at a time became {self.state.fits}, "
                f"gradient_accumulation {self.micro.parts}; the batch stays {config.batch_size}"
            )
            self._note("out_of_memory", message, step=step + 1, gradient_accumulation=self.micro.parts)
        losses = {name: float(value) for name, value in terms.items()}
        self._check(losses, batch)
        accelerator.unscale_gradients(self.optimizer)
        norm = self.clip(self.trained, step)
        if accelerator.scaler is None:  # one leaves such a step out
            self._check({"gradient norm": float(norm)}, batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.update_average()
        return losses

    def _check(self, figures: dict[str, float], batch: dict[str, Any]) -> None:
        if all(map(math.isfinite, figures.values())):
            return
        self.optimizer.zero_grad(set_to_none=True)
        bad = ", ".join(f"{k} is {v}" for k, v in figures.items() if not math.isfinite(v))
        pictures = ", ".join(map(str, batch.get("paths", batch.get("captions", ["(unnamed)"]))[:16]))
        message = f"step {self.state.step + 1}: {bad}, so no weight was changed. Batch: {pictures}"
        if self.config.on_divergence == "back_off":
            raise NotFinite(message)
        kept = on_main(self.accelerator, lambda: checkpoints.steps(self.folder))
        back = f"The checkpoint at step {kept[-1]} is intact" if kept else "No checkpoint was written yet"
        raise NotFinite(f"{message}. {back}; lower the learning rate or look at these pictures")

    def _go_back(self, why: str) -> None:
        """Return to the last good checkpoint with a lower rate.

        Raises:
            UserError: that was done `back_off_times` times already.
        """
        config, was = self.config, self.state.step
        if self.state.back_off.times >= config.back_off_times:
            raise UserError(f"{why}. The rate was lowered {self.state.back_off.times} times in vain")

        events = self.events

        def find() -> checkpoints.Checkpoint:
            found = last_good(self.folder, self.state.judge, was, self.state.back_off.step, why)
            assert self.metrics is not None
            dropped = self.metrics.cut(found.step)
            events[:0] = [row for row in dropped if row.get("event") == "back_off"]  # an earlier return
            return found

        found = on_main(self.accelerator, find)
        factor = self.state.back_off.rate_factor * config.back_off_factor
        back_off, fits = BackOff(self.state.back_off.times + 1, factor, found.step), self.state.fits
        self._become(found)
        begin_training(self.optimizer)
        self.state.back_off, self.state.fits = back_off, fits
        self.events = [event | {"step": found.step + 1} for event in events]
        self._note(
            "back_off",
            f"{why}. Went back from step {was} to {found.step}; the learning rate is now {factor:g} times the "
            "configured one",
            step=found.step + 1,
            rate_factor=factor,
        )

    def _note(self, event: str, message: str, *, step: int | None = None, **figures: Any) -> None:
        """Keep something to tell; its line belongs to the step it happened on the way to."""
        if self.accelerator.is_main_process:
            log.warning("%s", message)
        self.events.append(
            {"step": step or self.state.step or 1, "event": event, "message": message, **figures}
        )

    def _after(self, losses: dict[str, float], rate: float) -> None:
        config, step = self.config, self.state.step
        end = step == config.steps
        stop = worst(self.accelerator, int(self.should_stop())) > 0
        progress = Progress(step, config.steps, losses, rate, self.state.seconds, config.batch_size)
        if end or step % config.validate_every == 0:
            if step % config.validate_every:
                self.state.leave_the_plan()
            progress.validation = on_main(self.accelerator, self._validate)
            if "loss" in progress.validation:
                for event, message in self.state.judge.validate(step, progress.validation["loss"]):
                    self._note(event, message)
            end = end or self.state.judge.patience_exceeded
        every = [config.log_every, config.preview_every, config.checkpoint_every]
        every += [config.save_every] if config.save_every is not None else []
        if end or stop or progress.validation or self.events or any(step % n == 0 for n in every):
            progress = on_main(self.accelerator, lambda: self._write(progress, end=end, stop=stop))
        self.events = []
        if config.trackers and (progress.validation or step % config.log_every == 0):
            figures = {**losses, "learning_rate": rate}
            self.accelerator.log(
                figures | {f"validation_{k}": v for k, v in progress.validation.items()}, step=step
            )
        if config.trackers and progress.preview is not None:
            show_previews(self.accelerator, progress.preview, step)
        if self.accelerator.is_main_process:
            self.live.tell(progress)
            if self.on_progress is not None:
                self.on_progress(progress)
        if stop and not end:
            raise Interrupted(self.run, step)

    def _validate(self) -> dict[str, float]:
        """Validate, and keep the best weights (main process)."""
        with self.state.averaged(), torch.no_grad():
            figures = self.objective.validate()
            if self.config.keep_best:
                self.state.keep_best(figures.get("loss", math.inf))
        return figures

    def _write(self, progress: Progress, *, end: bool, stop: bool) -> Progress:
        """Events, figures, preview and checkpoint of a step, as far as they are due (main process)."""
        config, step = self.config, progress.step
        assert self.metrics is not None
        for event in self.events:
            self.metrics.write(event["step"], event)
            progress.notes.append(event["message"])
        if end or step % config.preview_every == 0:
            with self.state.averaged(), torch.no_grad():
                progress.preview = self.objective.write_preview(self.run, step)
        if end or stop or step % config.log_every == 0 or progress.validation:
            values = {
                **progress.losses,
                "learning_rate": progress.learning_rate,
                "seconds": round(progress.seconds, 3),
            }
            self.metrics.write(step, values | {f"validation_{k}": v for k, v in progress.validation.items()})
        if config.save_every is not None and step % config.save_every == 0:
            self.objective.step = step
            with self.state.averaged():
                self.objective.save(self.run / "saved" / f"step-{step:08d}")
        if end or stop or step % config.checkpoint_every == 0:
            progress.checkpoint = self.checkpoint()
        return progress

    def checkpoint(self) -> Path:
        """Write the present state (main process)."""
        if self.metrics is not None:
            self.metrics.sync()
        state = self.state.checkpoint()
        state.extra["made_with"] = made_with(self.accelerator.num_processes)
        return checkpoints.save(self.folder, state, self.config.keep_checkpoints, self._spare())

    def _spare(self) -> int | None:
        """While it diverges, the last good checkpoint must not roll away."""
        if self.state.judge.diverging_since is None:
            return None
        return max(good_steps(self.folder, self.state.judge), default=None)
