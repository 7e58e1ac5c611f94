"""Pictures and captions for training: folders in, keyed examples, batches and caches out."""

from hyperbrush.ldm.data.buckets import Buckets
from hyperbrush.ldm.data.cache import LatentCache, content_key
from hyperbrush.ldm.data.folder import ImageFolder
from hyperbrush.ldm.data.latents import LatentDataset, cache_latents
from hyperbrush.ldm.data.order import BatchOrder, collate
from hyperbrush.ldm.data.scan import Item, Problem, Scan, scan
from hyperbrush.ldm.data.texts import cache_texts

__all__ = [
    "BatchOrder",
    "Buckets",
    "ImageFolder",
    "Item",
    "LatentCache",
    "LatentDataset",
    "Problem",
    "Scan",
    "cache_latents",
    "cache_texts",
    "collate",
    "content_key",
    "scan",
]
