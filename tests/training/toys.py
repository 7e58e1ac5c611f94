"""A small real regression as an objective: fast enough to be trained hundreds of times."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperbrush.files import write_text
from hyperbrush.ldm.util import keyed_generator, load_config
from hyperbrush.training import Progress, Trainer, TrainerConfig
from hyperbrush.training.loop.objectives import Objective, trained_tensors

SETTINGS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "checkpoint_every": 2,
    "validate_every": 3,
    "preview_every": 1000,
    "log_every": 1,
    "ema_decay": 0.9,
    "optimizer": {"learning_rate": 1e-2},
}


class Regression(Objective):
    """A network with dropout learns a fixed linear map from noisy examples."""

    def __init__(self, *, dropout: float = 0.1, held_out: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 3))
        self.held_out = True if held_out else None
        self.map = torch.randn(6, 3, generator=keyed_generator("map"))

    def draw(self, key: Any, size: int) -> dict[str, Any]:
        x = torch.randn(size, 6, generator=keyed_generator("batch", key))
        return {"x": x, "y": x @ self.map, "paths": [f"{key}-{i}.png" for i in range(size)]}

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        return self.draw(step, batch_size)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"loss": (self.network(batch["x"]) - batch["y"]).pow(2).mean()}

    def validate(self) -> dict[str, float]:
        return {"loss": float(self(self.draw("held out", 32))["loss"])} if self.held_out else {}

    def save(self, folder: Path) -> Path:
        write_text(folder / "result.json", json.dumps(weights(self).tolist()))
        return folder / "result.json"


def weights(objective: Objective) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trained_tensors(objective).values()])


def trainer(
    objective: Objective,
    run: Path,
    *,
    stop_at: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    optimizer_factory: Any = None,
    **change: Any,
) -> Trainer:
    made: Trainer = Trainer(
        objective,
        load_config(TrainerConfig, SETTINGS | change),
        run,
        on_progress=on_progress,
        should_stop=lambda: made.state.step == stop_at,
        optimizer_factory=optimizer_factory,
    )
    return made


def train(objective: Objective, run: Path, *, resume: bool = False, **change: Any) -> Objective:
    trainer(objective, run, **change).train(resume=resume)
    return objective
