"""What a training reads: pictures in memory, cached latents."""
