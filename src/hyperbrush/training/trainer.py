"""The loop: step, log, validate, preview, checkpoint; on Accelerate."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path
from hyperbrush.ldm.lr_scheduler import make_schedule
from hyperbrush.ldm.util import keyed_seed
from hyperbrush.training import checkpoint as checkpoints
from hyperbrush.training.config import TrainerConfig
from hyperbrush.training.metrics import Metrics
from hyperbrush.training.objectives import Objective, load_trained, rows, trained_tensors

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a listener is told after each step."""

    step: int
    steps: int
    losses: dict[str, float]
    learning_rate: float
    seconds: float  # of training so far, earlier parts of a resumed run included
    validation: dict[str, float] = field(default_factory=dict)
    preview: Path | None = None
    checkpoint: Path | None = None


@dataclass
class Best:
    """Weights of the lowest validation loss so far."""

    step: int
    loss: float
    tensors: dict[str, Tensor]


class Interrupted(Exception):
    """The training was asked to stop; its state is on disk."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.run, self.step = run, step


class Trainer:
    """Minimises one objective in one run folder.

    n steps in one go equal k steps, a resume and n - k steps, to the bit on the CPU: batches and noise
    are functions of (seed, step), and the checkpoint holds the parameters, the optimizer's state and
    the moving average.  The learning rate is a function of the step and set here, so that no scheduler
    can count processes.

    Args:
        objective: what to train.
        config: how.
        run: folder for checkpoints/, previews/, metrics.jsonl.
        on_progress: called after each step.
        should_stop: asked after each step; True saves and raises `Interrupted`.
    """

    def __init__(
        self,
        objective: Objective,
        config: TrainerConfig,
        run: str | Path,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs

        AcceleratorState._reset_state()  # or a second training could not choose another precision

        self.objective, self.config, self.run = objective, config, Path(run)
        self.on_progress, self.should_stop = on_progress, should_stop
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with="tensorboard" if config.tensorboard else None,
            project_dir=str(self.run),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=False)],
        )
        parts = config.gradient_accumulation * self.accelerator.num_processes
        if config.batch_size % parts:
            raise UserError(
                f"batch_size {config.batch_size} cannot be split over {self.accelerator.num_processes} processes "
                f"times {config.gradient_accumulation} parts; take a multiple of {parts}"
            )
        groups = [dict(group) for group in objective.parameter_groups()]
        if not any(group["params"] for group in groups):
            raise UserError("nothing is trainable: every parameter of the objective is frozen")
        self.scales = [float(group.pop("scale", 1.0)) for group in groups]
        settings = config.optimizer
        optimizer = torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        fall = int(settings.decay_from * config.steps)
        self.schedule = make_schedule(
            settings.schedule,
            base_rate=settings.learning_rate,
            num_warmup_steps=0 if fall else settings.warmup_steps,
            num_training_steps=config.steps - fall,
        )
        self.fall = fall
        self.step = 0
        objective.place(self.accelerator.device)
        self.module, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.average = None
        if config.ema_decay is not None:
            self.average = {k: p.detach().clone() for k, p in trained_tensors(objective).items()}
        self.best: Best | None = None
        self.seconds = 0.0  # spent before a resume, and then in all

    def rate(self, step: int) -> float:
        """Learning rate of the step after ``step`` steps: warm-up, plateau until `decay_from`, schedule."""
        settings = self.config.optimizer
        if not self.fall:
            return self.schedule(step)
        warm = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
        return warm * (settings.learning_rate if step < self.fall else self.schedule(step - self.fall))

    def train(self, *, resume: bool = False, at: int | None = None) -> Path:
        """Run to `config.steps` and return what the objective saved.

        The objective is left with the weights that were saved: the best (`keep_best`), the averaged, or
        the last ones.

        Raises:
            UserError: a run folder in use; a loss that is not finite (names the step and the pictures; the last checkpoint
                stands), a damaged checkpoint, a full disk.
            Interrupted: `should_stop` said so; a checkpoint was written.
        """
        if resume:
            self._restore(at)
        elif any((self.run / "checkpoints").glob("step-*.safetensors")):
            raise UserError(
                f"{self.run} holds checkpoints of another training: resume it, or choose another run folder"
            )
        metrics = Metrics(self.run / "metrics.jsonl", self.step) if self.accelerator.is_main_process else None
        if self.config.tensorboard:
            self.accelerator.init_trackers("tensorboard")
        begin = time.monotonic() - self.seconds
        self.objective.train()
        try:
            while self.step < self.config.steps:
                rate = self.rate(self.step)
                losses = self._one_step(rate)
                self.step += 1
                self.seconds = time.monotonic() - begin
                self._after(losses, rate, metrics)
        finally:
            if metrics is not None:
                metrics.close()
            if self.config.tensorboard:
                self.accelerator.end_training()
        result = self.best.tensors if self.best is not None else self.average
        if result is not None:
            load_trained(self.objective, result)
        self.objective.eval()
        return self.objective.save(self.run)

    def _one_step(self, rate: float) -> dict[str, float]:
        config, accelerator = self.config, self.accelerator
        # Dropout and the like draw from the global generator: key it too.
        torch.manual_seed(keyed_seed(config.seed, "global", self.step, accelerator.process_index))
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        batch = self.objective.batch(self.step, config.batch_size)
        size = config.batch_size // (config.gradient_accumulation * accelerator.num_processes)
        sums: dict[str, Tensor] = {}
        for part in range(config.gradient_accumulation):
            start = (part * accelerator.num_processes + accelerator.process_index) * size
            last = part == config.gradient_accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.module):
                with accelerator.autocast():
                    terms = self.module(rows(batch, start, start + size, config.batch_size))
                accelerator.backward(terms["loss"] / config.gradient_accumulation)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() / config.gradient_accumulation
        losses = {name: float(accelerator.reduce(value, "mean")) for name, value in sums.items()}
        if not all(map(math.isfinite, losses.values())):
            self.optimizer.zero_grad(set_to_none=True)
            raise UserError(self._not_finite(losses, batch))
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = accelerator.clip_grad_norm_(trained, config.optimizer.max_grad_norm or math.inf)
        if norm is not None and not torch.isfinite(norm) and config.mixed_precision != "fp16":
            self.optimizer.zero_grad(set_to_none=True)
            raise UserError(self._not_finite({"gradient norm": float(norm)}, batch))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self._update_average()
        return losses

    def _not_finite(self, losses: dict[str, float], batch: dict[str, Any]) -> str:
        bad = ", ".join(f"{k} is {v}" for k, v in losses.items() if not math.isfinite(v))
        pictures = ", ".join(map(str, batch.get("paths", batch.get("captions", ["(unnamed)"]))[:16]))
        kept = checkpoints.latest(self.run / "checkpoints")
        back = f"The checkpoint at step {kept.step} is intact" if kept else "No checkpoint was written yet"
        return (
            f"step {self.step + 1}: {bad}, so no weight was changed. Batch: {pictures}. {back}; "
            "lower the learning rate or look at these pictures"
        )

    def _update_average(self) -> None:
        """EMA with the warm-up of diffusers' EMAModel: min(decay, (1 + n) / (10 + n))."""
        assert self.average is not None
        assert self.config.ema_decay is not None
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        own = trained_tensors(self.objective)
        torch._foreach_lerp_([self.average[k] for k in own], [p.detach() for p in own.values()], 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the objective has the averaged weights and is in evaluation mode."""
        kept = {k: p.detach().clone() for k, p in trained_tensors(self.objective).items()}
        self.objective.eval()
        try:
            if self.average is not None:
                load_trained(self.objective, self.average)
            yield
        finally:
            load_trained(self.objective, kept)
            self.objective.train()

    def _after(self, losses: dict[str, float], rate: float, metrics: Metrics | None) -> None:
        config, step, end = self.config, self.step, self.step == self.config.steps
        stop = self.should_stop()
        told = Progress(step, config.steps, losses, rate, self.seconds)
        main = self.accelerator.is_main_process
        if main and (end or step % config.validate_every == 0):
            with self.averaged(), torch.no_grad():
                told.validation = self.objective.validate()
                loss = told.validation.get("loss", math.inf)
                if config.keep_best and loss < (self.best.loss if self.best else math.inf):
                    own = trained_tensors(self.objective)
                    self.best = Best(step, loss, {k: p.detach().clone() for k, p in own.items()})
        if main and (end or step % config.preview_every == 0):
            with self.averaged(), torch.no_grad():
                picture = self.objective.preview()
            if picture is not None:
                told.preview = self.run / "previews" / f"step-{step:08d}.png"
                with atomic_path(told.preview) as temporary:
                    picture.save(temporary)
        if metrics is not None and (end or stop or step % config.log_every == 0 or told.validation):
            values = {**losses, "learning_rate": rate, "seconds": round(self.seconds, 3)}
            metrics.write(step, values | {f"validation_{k}": v for k, v in told.validation.items()})
        if config.tensorboard and step % config.log_every == 0:
            self.accelerator.log({**losses, "learning_rate": rate}, step=step)
        if main and (end or stop or step % config.checkpoint_every == 0):
            told.checkpoint = self.checkpoint()
        self.accelerator.wait_for_everyone()
        if self.on_progress is not None:
            self.on_progress(told)
        if stop and not end:
            raise Interrupted(self.run, step)

    def checkpoint(self) -> Path:
        """Write the present state."""
        tensors = {f"model.{k}": v for k, v in trained_tensors(self.objective).items()}
        state, rest = checkpoints.flatten_optimizer(self.optimizer)
        tensors |= {f"optimizer.{k}": v for k, v in state.items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.items()}
        extra: dict[str, Any] = {"optimizer": rest, "seconds": self.seconds}
        if self.best is not None:
            tensors |= {f"best.{k}": v for k, v in self.best.tensors.items()}
            extra["best"] = {"step": self.best.step, "loss": self.best.loss}
        if self.accelerator.scaler is not None:
            extra["scaler"] = self.accelerator.scaler.state_dict()
        found = checkpoints.Checkpoint(self.step, tensors, json.loads(json.dumps(extra)))
        return checkpoints.save(self.run / "checkpoints", found, self.config.keep_checkpoints)

    def _restore(self, at: int | None) -> None:
        found = checkpoints.latest(self.run / "checkpoints", at)
        if found is None:
            raise UserError(f"{self.run} holds no checkpoint to resume from")

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in found.tensors.items() if k.startswith(prefix)}

        load_trained(self.objective, part("model."))
        checkpoints.restore_optimizer(self.optimizer, part("optimizer."), found.extra["optimizer"])
        if self.average is not None:
            saved = part("average.") or part("model.")
            self.average = {k: saved[k].to(v) for k, v in self.average.items()}
        if self.config.keep_best and "best" in found.extra:
            self.best = Best(**found.extra["best"], tensors=part("best."))
        if self.accelerator.scaler is not None and "scaler" in found.extra:
            self.accelerator.scaler.load_state_dict(found.extra["scaler"])
        self.step, self.seconds = found.step, float(found.extra.get("seconds", 0.0))
