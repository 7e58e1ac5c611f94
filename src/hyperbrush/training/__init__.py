"""One Trainer on Accelerate, the objectives it minimises, its checkpoints and its metrics."""
