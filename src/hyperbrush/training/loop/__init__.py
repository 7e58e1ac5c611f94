"""The training loop: Trainer, state, checkpoints, optimizers, metrics."""
