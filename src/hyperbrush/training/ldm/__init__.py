"""Training latent diffusion models."""
