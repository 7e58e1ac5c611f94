"""Named in the model_index.json of models that diffusers' pipelines cannot draw with, so that opening one there says why."""

from typing import Any

from hyperbrush.errors import UserError


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise UserError(
        f"this model (its first stage is a {name}) has a codebook, or is told something else than captions, and no Stable "
        "Diffusion pipeline of diffusers draws with such: open its folder with "
        "hyperbrush.ldm.models.LatentDiffusion.from_pretrained, or `hyperbrush ldm sample --model FOLDER`"
    )
