"""Which module of the original programs is which of ours."""

from collections.abc import Mapping

Path = tuple[
    tuple[str, ...], Mapping[str, str]
]  # modules whose names it has, and names by "module:attribute"

_HYPERNETWORKS = "hyperbrush.hypernetworks"
_TRAINING = {
    "HypernetworkTrainer": "hyperbrush.training:HypernetworkTrainer",
    "train_hypernetwork": "hyperbrush.training:train_hypernetwork",
}


def _ldm(root: str) -> dict[str, Path]:
    models = "hyperbrush.ldm.models"
    return {
        root: ((), {}),
        f"{root}.models": ((models,), {}),
        f"{root}.models.diffusion": ((), {}),
        f"{root}.models.diffusion.ddpm": (
            (),
            {"LatentDiffusion": f"{models}:LatentDiffusion", "DiffusionWrapper": f"{models}:DiffusionModel"},
        ),
        f"{root}.models.autoencoder": (
            (f"{models}.autoencoder",),
            {"AutoencoderKL": "diffusers:AutoencoderKL", "VQModel": "diffusers:VQModel"},
        ),
        f"{root}.modules": (
            (
                "hyperbrush.ldm.modules.attention_sites",
                "hyperbrush.ldm.modules.diffusion",
                "hyperbrush.ldm.modules.losses",
            ),
            {},
        ),
        f"{root}.data": (("hyperbrush.ldm.data",), {}),
        f"{root}.util": (("hyperbrush.ldm.util",), {}),
        f"{root}.lr_scheduler": (("hyperbrush.ldm.lr_scheduler",), {}),
    }


PATHS: dict[str, Path] = {
    "modules": ((), {}),
    "modules.hypernetworks": ((), {}),
    "modules.hypernetworks.hypernetwork": (
        (_HYPERNETWORKS,),
        {
            **_TRAINING,
            "Hypernetwork": "hyperbrush.compat.hypernetwork:Hypernetwork",
            "HypernetworkModule": f"{_HYPERNETWORKS}.attention.context_network:ContextNetwork",
            "load_hypernetwork": f"{_HYPERNETWORKS}.files.adapters:load",
        },
    ),
    "modules.hypernetworks.ui": ((), _TRAINING),
    **_ldm("modules.ldm"),
    **_ldm("ldm"),
}
ROOTS = ("modules", "ldm")
