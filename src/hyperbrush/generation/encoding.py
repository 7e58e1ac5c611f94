"""Prompts to text states as the webui makes them: chunks, CLIP skip, emphasis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.generation.emphasis import BREAK, parse_emphasis

if TYPE_CHECKING:
    from hyperbrush.ldm.models import LatentDiffusion

COMMA = ",</w>"
BACKTRACK = 20  # the webui's default for how far back from a chunk's end a comma may end it


@dataclass(frozen=True)
class Encoded:
    """What the UNet is told of some texts.

    Args:
        embeddings: (batch, tokens, width), the chunks of a text one after the other.
        pooled: (batch, projection) for Stable Diffusion XL, else None.
    """

    embeddings: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, rows: slice) -> "Encoded":
        """Some of the texts."""
        return Encoded(self.embeddings[rows], None if self.pooled is None else self.pooled[rows])


@dataclass(frozen=True)
class Chunk:
    """Tokens that a text encoder reads at once, start, end and padding among them, and their weights."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@torch.no_grad()
def encode_prompts(
    model: "LatentDiffusion",
    texts: Sequence[str],
    *,
    clip_skip: int = 1,
    emphasis: bool = True,
    chunks: int | None = None,
) -> Encoded:
    """Text states of prompts (without tags), as the webui makes them at batch size 1.

    Each text is cut into chunks of the tokenizer's length less two (75 tokens for CLIP), each chunk is
    encoded with its own start, end and padding, and their states are joined along the tokens.  Texts
    of fewer chunks than the longest of the call get empty chunks; give the negative texts in the same
    call, or in one of their own: `LatentDiffusion.sample` takes two lengths (see `text.same_length`), and
    the webui, which by default computes both sides of guidance apart, pads neither by the other.

    Emphasis multiplies a token's states by its weight and then brings the chunk's mean back to what it
    was.  The webui takes that mean over the same chunk of all pictures of a batch; here it is over the
    one text, so that a picture does not depend on its neighbours.  One text of one chunk without
    emphasis is, to the bit, ``model.encode_text([text])``.

    Args:
        model: conditioned by text.
        texts: prompts.
        clip_skip: n takes the states before the last n - 1 layers, through the final layer norm.  Stable
            Diffusion XL always reads the layer before the last one, which is called 1 or 2 there.
        emphasis: read brackets and BREAK (`parse_emphasis`); else they are text.
        chunks: pad to this number of chunks.

    Raises:
        UserError: no texts; a model that reads none; a `clip_skip` its encoder cannot do; fewer `chunks`
            than a text needs; a weight that is no number.
    """
    if not texts:
        raise UserError("no text to encode was given")
    readers = _readers(model)
    two = len(readers) == 2
    if two and clip_skip not in (1, 2):
        raise UserError(
            f"clip_skip {clip_skip}: Stable Diffusion XL is trained on the layer before the last one, "
            "called 1 or 2 here; leave clip_skip out"
        )
    parsed = [parse_emphasis(text) if emphasis else [(text, 1.0)] for text in texts]
    by_reader = [[split_chunks(tokenizer, parts) for parts in parsed] for _, tokenizer in readers]
    needed = max(len(one) for rows in by_reader for one in rows)
    if chunks is not None and chunks < needed:
        raise UserError(
            f"the longest text has {needed} chunks, more than chunks={chunks}; give {needed} or more"
        )
    number = chunks or needed
    columns, pooled = [], None
    for (encoder, tokenizer), rows in zip(readers, by_reader, strict=True):
        empty = split_chunks(tokenizer, [("", 1.0)])
        padded = [one + empty * (number - len(one)) for one in rows]
        states, firsts = _encode_rows(encoder, padded, clip_skip, penultimate=two)
        columns.append(states)
        pooled = firsts
    joined = torch.cat(columns, dim=-1)
    if pooled is not None and model.zero_empty_text:
        said = torch.tensor([bool(text.strip()) for text in texts], device=joined.device)
        joined, pooled = joined * said[:, None, None], pooled * said[:, None]
    return Encoded(joined, pooled)


def split_chunks(tokenizer: Any, parts: Sequence[tuple[str, float]]) -> list[Chunk]:
    """Weighted parts of a text as chunks for a text encoder, at least one.

    A BREAK fills the chunk it stands in.  Where a chunk is full and one of its last `BACKTRACK` tokens
    is a comma, the chunk ends there and what follows the comma opens the next one.
    """
    room = tokenizer.model_max_length - 2
    found = tokenizer.convert_tokens_to_ids(COMMA)
    comma = None if found == tokenizer.unk_token_id else found
    done: list[Chunk] = []
    ids: list[int] = []
    weights: list[float] = []
    last_comma: int | None = None  # where it stands in this chunk

    def close(at: int) -> None:
        nonlocal ids, weights, last_comma
        done.append(_chunk(tokenizer, ids[:at], weights[:at]))
        ids, weights, last_comma = ids[at:], weights[at:], None

    for text, weight in parts:
        if (text, weight) == BREAK:
            close(len(ids))
            continue
        for token in tokenizer(text, add_special_tokens=False, verbose=False).input_ids:
            if len(ids) == room:
                near = token != comma and last_comma is not None and room - last_comma <= BACKTRACK
                close((last_comma or 0) + 1 if near else room)
            elif token == comma:
                last_comma = len(ids)
            ids.append(token)
            weights.append(weight)
    if ids or not done:
        close(len(ids))
    return done


def _chunk(tokenizer: Any, ids: Sequence[int], weights: Sequence[float]) -> Chunk:
    """A chunk with its start, end and padding, whose weights are 1."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    missing = tokenizer.model_max_length - 2 - len(ids)
    return Chunk(
        (tokenizer.bos_token_id, *ids, end, *[end if pad is None else pad] * missing),
        (1.0, *weights, 1.0, *[1.0] * missing),
    )


def _readers(model: "LatentDiffusion") -> list[tuple[Any, Any]]:
    """Text encoders with their tokenizers: one, or Stable Diffusion XL's two."""
    if model.text_encoder is None or model.tokenizer is None:
        raise UserError(f"this model is conditioned by {model.conditioning!r} and reads no captions")
    readers = [(model.text_encoder, model.tokenizer), (model.text_encoder_2, model.tokenizer_2)]
    return [pair for pair in readers if pair[0] is not None]


def _encode_rows(
    encoder: Any, rows: Sequence[Sequence[Chunk]], clip_skip: int, *, penultimate: bool
) -> tuple[Tensor, Tensor | None]:
    """States (batch, tokens, width) of texts of equally many chunks, and the first outputs of their
    first chunks where the penultimate layer is read.

    Equal chunks are encoded once, each by itself: a text's states do not depend on the other texts.
    """
    from hyperbrush.ldm.models import text

    device = next(encoder.parameters()).device
    known: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}
    for ids in {chunk.ids: None for row in rows for chunk in row}:
        tokens = torch.tensor([ids], device=device)
        if penultimate:
            known[ids] = text.encode_penultimate(encoder, tokens)
        else:
            known[ids] = text.encode_text(encoder, tokens, clip_skip), None
    states = [torch.cat([emphasised(known[c.ids][0], c.weights) for c in row], dim=1) for row in rows]
    firsts = [known[row[0].ids][1] for row in rows]
    return torch.cat(states), torch.cat(firsts) if penultimate else None  # type: ignore[arg-type]


def emphasised(states: Tensor, weights: Sequence[float]) -> Tensor:
    """The webui's emphasis: z' = z · weight, then z' · mean(z) / mean(z'), the means over a whole chunk.

    states: (1, tokens, width); weights: one for each token.
    """
    if all(weight == 1 for weight in weights):
        return states
    exact = states.to(torch.promote_types(states.dtype, torch.float32))
    factors = torch.tensor(weights, dtype=exact.dtype, device=exact.device)
    scaled = exact * factors[None, :, None]
    mean = scaled.mean()
    if mean != 0:  # else no factor brings it back
        scaled = scaled * (exact.mean() / mean)
    return scaled.to(states.dtype)
