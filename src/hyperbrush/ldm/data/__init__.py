"""Pictures and captions for training: folders in, keyed examples, batches and caches out."""

from hyperbrush.ldm.data.buckets import Buckets, OriginalSizes
from hyperbrush.ldm.data.cache import LatentCache, content_key
from hyperbrush.ldm.data.captioning import Captioning
from hyperbrush.ldm.data.captions import FileNames
from hyperbrush.ldm.data.examples import CaptionedExamples, Selection
from hyperbrush.ldm.data.folder import ImageFolder
from hyperbrush.ldm.data.latents import LatentDataset, cache_latents
from hyperbrush.ldm.data.masks import Masks
from hyperbrush.ldm.data.mixture import (
    Mixture,
    Part,
    folders_in,
    over_folders,
    repeats_by_name,
    split,
)
from hyperbrush.ldm.data.order import BatchOrder, collate
from hyperbrush.ldm.data.rows import PictureRows
from hyperbrush.ldm.data.scan import Item, Problem, Scan, scan
from hyperbrush.ldm.data.templates import read_templates
from hyperbrush.ldm.data.texts import cache_texts, captions_seen

__all__ = [
    "BatchOrder",
    "Buckets",
    "CaptionedExamples",
    "Captioning",
    "FileNames",
    "ImageFolder",
    "Item",
    "LatentCache",
    "LatentDataset",
    "Masks",
    "Mixture",
    "OriginalSizes",
    "Part",
    "PictureRows",
    "Problem",
    "Scan",
    "Selection",
    "cache_latents",
    "cache_texts",
    "captions_seen",
    "collate",
    "content_key",
    "folders_in",
    "over_folders",
    "read_templates",
    "repeats_by_name",
    "scan",
    "split",
]
