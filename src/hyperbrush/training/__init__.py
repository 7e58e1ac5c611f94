"""One Trainer on Accelerate, the objectives it minimises, its checkpoints and its metrics."""

from hyperbrush.training.attention.config import HypernetworkConfig
from hyperbrush.training.attention.trainer import HypernetworkTrainer
from hyperbrush.training.loop.config import TrainerConfig
from hyperbrush.training.loop.trainer import Interrupted, Progress, Trainer
from hyperbrush.training.step import train_hypernetwork

__all__ = [
    "HypernetworkConfig",
    "HypernetworkTrainer",
    "Interrupted",
    "Progress",
    "Trainer",
    "TrainerConfig",
    "train_hypernetwork",
]
