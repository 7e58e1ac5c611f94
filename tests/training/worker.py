"""What each of two processes does in test_processes.py: several trainings one after another."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from toys import Regression, trainer, weights

from hyperbrush.errors import UserError
from hyperbrush.training import Interrupted
from hyperbrush.training.loop import micro_batches
from hyperbrush.training.loop.processes import join

torch.set_num_threads(1)
LONG = {"steps": 50, "checkpoint_every": 25, "validate_every": 25}
SGD = {"optimizer": {"learning_rate": 1e-2}, "optimizer_factory": lambda g: torch.optim.SGD(g, lr=1e-2)}
VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": SGD,
    "adamw": {},
    "parts": SGD | {"gradient_accumulation": 2, "keep_best": True},
    "bf16": {"mixed_precision": "bf16"},
}


class Unlike(Regression):
    """Begins differently in each process, as networks do whose maker set no seed."""

    def __init__(self, rank: int) -> None:
        super().__init__(dropout=0.0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(rank)


class Failing(Regression):
    """Raises in its own place: in the batch, the loss, the validation."""

    def __init__(self, where: str, error: Exception) -> None:
        super().__init__(dropout=0.0)
        self.where, self.error = where, error

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if self.training and self.where == "loss" and len(batch["x"]) > 2:
            raise self.error
        return super().forward(batch)

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        if self.where == "batch" and step == 3:
            raise self.error
        return super().batch(step, batch_size)

    def validate(self) -> dict[str, float]:
        if self.where == "validation":
            raise self.error
        return super().validate()


def attempt(work: Callable[[], Any]) -> str:
    try:
        work()
    except (UserError, RuntimeError, Interrupted) as error:
        return f"{type(error).__name__}: {error}"
    return "finished"


def hypernetwork(run: Path) -> torch.Tensor:
    """How four steps change the weights of a real one on the embedded model."""
    import hyperbrush as hb
    from hyperbrush.assets import style_folder
    from hyperbrush.ldm.models import LatentDiffusion

    model = LatentDiffusion.from_pretrained("emoji")
    torch.manual_seed(0)
    hn = hb.AttentionHypernetwork.for_unet(model.unet, name="t", layer_structure=(1, 2, 1))
    before = [p.detach().flatten().clone() for p in hn.parameters()]
    settings: dict[str, Any] = {"max_steps": 4, "batch_size": 4, "validate_every": 4, "validation_share": 0.2}
    settings |= {"learning_rate": 1e-3, "timestep_sampling": "uniform"}
    settings["eps"] = 1e-4  # or Adam divides what rounding leaves of zeros by hardly anything
    hb.HypernetworkTrainer(hn, settings, run=run).train(model, style_folder() / "validation")
    return torch.cat([p.detach().flatten() for p in hn.parameters()]) - torch.cat(before)


def main(place: Path) -> None:
    from accelerate import PartialState

    join()
    rank = PartialState().process_index
    found: dict[str, Any] = {"processes": PartialState().num_processes}
    for name, change in VARIANTS.items():
        objective = Unlike(rank) if name == "sgd" else Regression(dropout=0.0)
        trainer(objective, place / name, **(LONG | change)).train()
        found[name] = weights(objective).tolist()

    objective = Regression(dropout=0.0)
    trainer(objective, place / "from one", **(LONG | SGD)).train(resume=True)
    found["from one"] = weights(objective).tolist()

    stop = {"stop_at": 25 if rank == 1 else None}
    stopped = trainer(Regression(dropout=0.0), place / "to one", **(LONG | SGD | stop))
    found["stop"] = attempt(stopped.train)

    real = micro_batches.average_gradients
    micro_batches.average_gradients = lambda *_: None
    objective = Regression(dropout=0.0)
    trainer(objective, place / "broken", **(LONG | SGD)).train()
    found["broken"] = weights(objective).tolist()
    micro_batches.average_gradients = real

    memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
    hungry = Failing("loss", memory) if rank == 1 else Regression(dropout=0.0)
    trainer(hungry, place / "hungry", **(LONG | SGD)).train()
    found["hungry"] = weights(hungry).tolist()

    other = Regression(dropout=0.0)
    for name, where, culprit in (("one fails", "batch", 1), ("main fails", "validation", 0)):
        objective = Failing(where, UserError("picture a.png is gone")) if rank == culprit else other
        found[name] = attempt(trainer(objective, place / name, **(LONG | SGD)).train)
    found["used"] = attempt(trainer(other, place / "sgd", **(LONG | SGD)).train)
    found["hypernetwork"] = hypernetwork(place / "hypernetwork").double().tolist()
    (place / f"found-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
