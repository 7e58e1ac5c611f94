"""The parts with equations in them: attention sites, the diffusion process, first-stage losses."""
