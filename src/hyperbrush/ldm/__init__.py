"""What a latent diffusion model is: models, modules, sampling, data, schedules."""
