"""Generated weights as something to train on: their factors as parameters of a module."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyperbrush.hypernetworks.weights.factors import Factors
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights


class TunedWeights(nn.Module):
    """An adapter whose factors are parameters, so that a trainer can go on from what was generated.

    weights: one adapter; its factors are copied, in float32, scales folded into B.
    name, step, metadata: carried to the file.
    """

    def __init__(self, weights: GeneratedWeights) -> None:
        super().__init__()
        self.name = weights.name
        self.metadata: dict[str, Any] = dict(weights.metadata)
        self._layers = weights.layers
        factors = weights.folded().to(torch.float32).detach().factors.values()
        self.downs = nn.ParameterList(f.down.clone() for f in factors)
        self.ups = nn.ParameterList(f.up.clone() for f in factors)

    @property
    def step(self) -> int:
        """Steps it was tuned for."""
        return int(self.metadata.get("step", 0))

    @step.setter
    def step(self, value: int) -> None:
        self.metadata["step"] = value

    @property
    def weights(self) -> GeneratedWeights:
        """The adapter; its factors are the parameters themselves."""
        factors = {
            name: Factors(down, up) for name, down, up in zip(self._layers, self.downs, self.ups, strict=True)
        }
        return GeneratedWeights(factors, name=self.name, metadata=self.metadata)

    def save(self, path: str | Path) -> Path:
        """Write a .safetensors file, see `GeneratedWeights.save`.

        Raises:
            UserError: as there.
        """
        return self.weights.save(path)
