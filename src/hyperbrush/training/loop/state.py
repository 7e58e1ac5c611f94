"""All that a training is after some steps: what a checkpoint holds."""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.config import TrainerConfig
from hyperbrush.training.loop.judge import Judge
from hyperbrush.training.loop.objectives import Objective, load_trained, trained_tensors
from hyperbrush.training.loop.optimizers import averages, evaluation_weights, use_evaluation_weights

# Settings that the learning rates of a training follow from.
RATE = {"name", "learning_rate", "schedule", "warmup_steps", "decay_from", "num_cycles"}


@dataclass
class Best:
    """Weights of the lowest validation loss so far."""

    step: int
    loss: float
    tensors: dict[str, Tensor]


@dataclass
class BackOff:
    """How often the training went back with a lower rate, where to, and what the rate is multiplied by."""

    times: int = 0
    rate_factor: float = 1.0
    step: int | None = None


class State:
    """Weights, optimizer, moving average, best weights, verdicts and counts of one training.

    Args:
        objective: its trained parameters are the weights.
        optimizer: of these parameters.
        scaler: of the gradients with fp16, else None.
        config: whether there is an average and a best; what the judge calls by which name.
    """

    def __init__(
        self, objective: Objective, optimizer: torch.optim.Optimizer, scaler: Any, config: TrainerConfig
    ) -> None:
        self.objective, self.optimizer, self.scaler, self.config = objective, optimizer, scaler, config
        self.group_settings = checkpoints.group_values(optimizer)
        self.step = 0
        self.seconds = 0.0  # spent before a resume, and then in all
        self.average: dict[str, Tensor] | None = None
        if config.ema_decay is not None and not averages(optimizer):
            self.average = self._copy()
        self.best: Best | None = None
        self.judge = Judge(config.divergence_factor, config.overfitting_after, config.patience)
        self.back_off = BackOff()
        self.planned: tuple[dict[str, Any], Best | None] | None = None  # of the judge; see `leave_the_plan`
        self.fits: int | None = None  # rows a part may have, once memory was short

    def _copy(self) -> dict[str, Tensor]:
        return {k: p.detach().clone() for k, p in trained_tensors(self.objective).items()}

    def keep_best(self, loss: float) -> None:
        """Copy the present weights if none had a lower loss."""
        if loss < (self.best.loss if self.best else math.inf):
            self.best = Best(self.step, loss, self._copy())

    def leave_the_plan(self) -> None:
        """Remember judge and best: a training with more steps would not validate here."""
        self.planned = self.judge.state(), self.best

    def update_average(self) -> None:
        """EMA with the warm-up of diffusers' EMAModel: min(decay, (1 + n) / (10 + n))."""
        if self.average is None or self.config.ema_decay is None:
            return
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        own = trained_tensors(self.objective)
        torch._foreach_lerp_([self.average[k] for k in own], [p.detach() for p in own.values()], 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the objective has the weights to use (averaged, by EMA or a schedule-free optimizer) and evaluates."""
        kept = self._copy()
        self.objective.eval()
        try:
            with evaluation_weights(self.optimizer):
                if self.average is not None:
                    load_trained(self.objective, self.average)
                yield
        finally:
            load_trained(self.objective, kept)
            self.objective.train()

    def finish(self) -> None:
        """Leave the objective with the weights to keep: the best, the averaged, or the last ones."""
        use_evaluation_weights(self.optimizer)
        result = self.best.tensors if self.best is not None else self.average
        if result is not None:
            load_trained(self.objective, result)
        self.objective.eval()

    def checkpoint(self) -> checkpoints.Checkpoint:
        """The state as tensors and plain values."""
        tensors = {f"model.{k}": v for k, v in trained_tensors(self.objective).items()}
        state, rest = checkpoints.flatten_optimizer(self.optimizer, self.group_settings)
        tensors |= {f"optimizer.{k}": v for k, v in state.items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.items()}
        extra: dict[str, Any] = {
            "optimizer": rest,
            "seconds": self.seconds,
            "judge": self.judge.state(),
            "back_off": asdict(self.back_off),
            "fits": self.fits,
            "plan": {"steps": self.config.steps, "optimizer": self.config.optimizer.model_dump(include=RATE)},
            "unplanned": self.step % self.config.checkpoint_every != 0,
        }
        if self.best is not None:
            tensors |= {f"best.{k}": v for k, v in self.best.tensors.items()}
            extra["best"] = {"step": self.best.step, "loss": self.best.loss}
        if self.planned is not None:
            judge, best = self.planned
            extra["planned"] = {"judge": judge}
            if best is not None:
                extra["planned"]["best"] = {"step": best.step, "loss": best.loss}
                if best is not self.best:
                    tensors |= {f"planned_best.{k}": v for k, v in best.tensors.items()}
        if self.scaler is not None:
            extra["scaler"] = self.scaler.state_dict()
        return checkpoints.Checkpoint(self.step, tensors, json.loads(json.dumps(extra)))

    def restore(self, found: checkpoints.Checkpoint) -> None:
        """Become what was saved.

        Raises:
            UserError: it is of another network.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in found.tensors.items() if k.startswith(prefix)}

        extra = found.extra
        load_trained(self.objective, part("model."))
        checkpoints.restore_optimizer(
            self.optimizer, part("optimizer."), extra["optimizer"], self.group_settings
        )
        if self.average is not None:
            saved = part("average.") or part("model.")
            self.average = {k: saved[k].to(v) for k, v in self.average.items()}
        self.best = self.planned = None
        if self.config.steps > found.step and "planned" in extra:  # it ended there, and goes on for longer
            best = part("planned_best.") or part("best.")
            extra = {k: v for k, v in extra.items() if k != "best"} | extra["planned"]
        else:
            best = part("best.")
        if self.config.keep_best and "best" in extra:
            self.best = Best(**extra["best"], tensors=best)
        if self.scaler is not None and "scaler" in extra:
            self.scaler.load_state_dict(extra["scaler"])
        # Checkpoints of the first versions have none of these three.
        self.judge = self.judge.restored(extra.get("judge", {}))
        self.back_off = BackOff(**extra.get("back_off", {}))
        self.fits = extra.get("fits")
        self.step, self.seconds = found.step, float(extra.get("seconds", 0.0))
