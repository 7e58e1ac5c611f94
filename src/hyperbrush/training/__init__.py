"""One Trainer on Accelerate, the objectives it minimises, its checkpoints and its metrics."""

from hyperbrush.training.config import TrainerConfig
from hyperbrush.training.hypernetwork import HypernetworkTrainer, train_hypernetwork
from hyperbrush.training.hypernetwork_config import HypernetworkConfig
from hyperbrush.training.trainer import Interrupted, Progress, Trainer

__all__ = [
    "HypernetworkConfig",
    "HypernetworkTrainer",
    "Interrupted",
    "Progress",
    "Trainer",
    "TrainerConfig",
    "train_hypernetwork",
]
