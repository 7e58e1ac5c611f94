"""What `forked`'s server imports once: the libraries that most commands load, and nothing of hyperbrush's own."""

import contextlib
import importlib

for name in (
    "torch",
    "accelerate",
    "peft",
    "typer",
    "rich.console",
    "rich.progress",
    "yaml",
    "requests",
    "pydantic",
    "PIL.Image",
    "scipy.stats",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.autoencoders.vq_model",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_ddim",
    "diffusers.schedulers.scheduling_dpmsolver_multistep",
    "diffusers.schedulers.scheduling_euler_ancestral_discrete",
    "diffusers.schedulers.scheduling_euler_discrete",
):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
