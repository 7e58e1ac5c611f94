"""Latent diffusion models: the whole, and the parts it is put together from."""

from hyperbrush.ldm.models.autoencoder import first_stage
from hyperbrush.ldm.models.diffusion_model import DiffusionModel
from hyperbrush.ldm.models.latent_diffusion import LatentDiffusion, train_step

__all__ = ["DiffusionModel", "LatentDiffusion", "first_stage", "train_step"]
