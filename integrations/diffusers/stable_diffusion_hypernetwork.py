"""A community pipeline of diffusers: Stable Diffusion with hypernetworks, for ``custom_pipeline=``."""

from diffusers import StableDiffusionPipeline

from hyperbrush import HypernetworkLoaderMixin


class StableDiffusionHypernetworkPipeline(HypernetworkLoaderMixin, StableDiffusionPipeline):  # type: ignore[misc]
    """StableDiffusionPipeline with load_hypernetwork, set_hypernetworks, get_active_hypernetworks and so on.

    Hypernetworks (NovelAI's and the webui's of 2022) change what the attention's keys and values see:
    k = to_k(c + s·MLP_k(c)), v = to_v(c + s·MLP_v(c)).
    """
