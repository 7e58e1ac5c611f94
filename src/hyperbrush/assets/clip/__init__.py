"""CLIP's vocabulary of 49,408 tokens, rebuilt from its merges: no download (see LICENSE)."""

import gzip
from pathlib import Path
from typing import Any

MERGES = Path(__file__).parent / "merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids and merges of CLIP's byte-pair encoding.

    Ids are in CLIP's order: 256 bytes, 256 bytes that end a word, 48,894 merges, start, end.
    """
    from tokenizers import pre_tokenizers

    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        merges = [(left, right) for left, right in (line.split() for line in file)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [x + "</w>" for x in letters] + [left + right for left, right in merges] + [START, END]
    return {piece: i for i, piece in enumerate(pieces)}, merges


def clip_tokenizer(pad_token: str = END, max_length: int = 77) -> Any:
    """CLIP's tokenizer as a `CLIPTokenizer`, without network.

    pad_token: END for OpenAI's CLIP (Stable Diffusion 1, the first of XL); "!" (id 0) for OpenCLIP
    (Stable Diffusion 2, the second of XL).  max_length: tokens, start and end among them.

    >>> clip_tokenizer()("a photo of a cat").input_ids
    [49406, 320, 1125, 539, 320, 2368, 49407]
    """
    from transformers import CLIPTokenizer

    ids, merges = vocabulary()
    tokenizer = CLIPTokenizer(vocab=ids, merges=merges, model_max_length=max_length)
    # Set afterwards: as an argument it would become a special token, and "cat!" would hold padding.
    tokenizer.pad_token = pad_token
    return tokenizer
