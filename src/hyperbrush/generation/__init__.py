"""What a prompt means, and pictures made from it."""

from hyperbrush.generation.tags import HypernetworkTag, parse_tags
from hyperbrush.generation.text_to_image import Picture, generate

__all__ = ["HypernetworkTag", "Picture", "generate", "parse_tags"]
