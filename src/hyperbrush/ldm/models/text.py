"""The text side: a CLIP text model, a BPE tokenizer, and files that old programs can read too."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError
from hyperbrush.files import write_json


def build_text_encoder(tokenizer: Any, *, width: int = 256, layers: int = 4, num_heads: int = 4) -> nn.Module:
    """A fresh `CLIPTextModel` for this tokenizer, of the architecture Stable Diffusion 1 uses.

    tokenizer: a `CLIPTokenizer`; width: of the hidden states; layers, num_heads: of the transformer.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=num_heads,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)  # type: ignore[no-any-return]


def default_tokenizer() -> Any:
    """The embedded model's tokenizer."""
    from transformers import CLIPTokenizer

    from hyperbrush.assets import model_folder

    return CLIPTokenizer.from_pretrained(model_folder("emoji") / "tokenizer")


def train_tokenizer(captions: Sequence[str], *, vocabulary: int = 4096, max_length: int = 77) -> Any:
    """Train CLIP's byte-level BPE (lower case, "</w>" ends a word) on captions; returns a `CLIPTokenizer`.

    The special tokens are CLIP's, and padding is the end token as in Stable Diffusion 1.
    """
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer().backend_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=letters,
            end_of_word_suffix="</w>",
        ),
    )
    found = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in found]
    # CLIP's order: bytes, bytes that end a word, merges, special tokens last.
    pieces = letters + [x + "</w>" for x in letters] + [a + b for a, b in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    ids = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=max_length)


def width_of(text_encoder: nn.Module | None) -> int | None:
    """Width of a text encoder's hidden states; None for no encoder."""
    config: Any = getattr(text_encoder, "config", None)
    return None if config is None else int(config.hidden_size)


def tokenize(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Token ids (batch, tokens), padded and cut to the tokenizer's length, as the pipelines do."""
    ids: Tensor = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids


def encode_text(text_encoder: nn.Module, ids: Tensor, clip_skip: int = 1) -> Tensor:
    """Hidden states (batch, tokens, width) after the final layer norm: what cross-attention sees.

    ids: (batch, tokens).  clip_skip: n leaves out the last n - 1 layers, as people count it; the final
    layer norm is applied all the same.

    Raises:
        UserError: the encoder has fewer layers.
    """
    layers = layers_of(text_encoder)
    if not 1 <= clip_skip <= layers:
        raise UserError(f"clip_skip {clip_skip} of a text encoder with {layers} layers: give 1 to {layers}")
    if clip_skip == 1:
        states: Tensor = text_encoder(ids).last_hidden_state
        return states
    inner: Any = getattr(text_encoder, "text_model", text_encoder)  # one level more in transformers 4
    out = text_encoder(ids, output_hidden_states=True)
    normed: Tensor = inner.final_layer_norm(out.hidden_states[-clip_skip])
    return normed


def encode_penultimate(text_encoder: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Stable Diffusion XL's reading of one encoder: the states (batch, tokens, width) before the last
    layer, without the final layer norm, and the encoder's first output (of the second encoder the
    pooled projection, (batch, projection)).
    """
    out = text_encoder(ids, output_hidden_states=True)
    return out.hidden_states[-2], out[0]


def layers_of(text_encoder: nn.Module) -> int:
    """Number of transformer layers of a text encoder."""
    config: Any = text_encoder.config
    return int(config.num_hidden_layers)


def same_length(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Text states (batch, tokens, width) of two lengths, each repeated to their least common one.

    Attention spreads its weight evenly over equal tokens, so that a text said k times gives exactly
    what it gives once: no padding is seen that a shorter text alone would not have.
    """
    length = math.lcm(one.shape[1], other.shape[1])
    return one.repeat(1, length // one.shape[1], 1), other.repeat(1, length // other.shape[1], 1)


def encode_text_xl(
    encoders: Sequence[nn.Module], tokenizers: Sequence[Any], texts: Sequence[str], *, zero_empty: bool
) -> tuple[Tensor, Tensor]:
    """Stable Diffusion XL's text states: both encoders' penultimate layers side by side, and the second
    one's pooled projection (Podell et al. 2023, section 2.1).

    zero_empty: the empty text is zeros, as the pipelines have it where no negative prompt is given.
    Returns (batch, tokens, width 1 + width 2) and (batch, projection).
    """
    states, pooled = [], torch.empty(0)
    for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
        device = next(encoder.parameters()).device
        state, pooled = encode_penultimate(encoder, tokenize(tokenizer, texts).to(device))
        states.append(state)
    joined = torch.cat(states, dim=-1)
    if zero_empty:
        said = torch.tensor([bool(t.strip()) for t in texts], device=joined.device)
        joined, pooled = joined * said[:, None, None], pooled * said[:, None]
    return joined, pooled


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """`save_pretrained`, and vocab.json and merges.txt beside it, which transformers 5 leaves out."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def save_text_encoder(text_encoder: nn.Module, folder: Path) -> None:
    """`save_pretrained` with the keys under "text_model.", which every older program expects."""
    from safetensors.torch import save_file

    text_encoder.save_pretrained(folder)  # type: ignore[operator]
    state = {
        key
        if key.startswith(("text_model.", "text_projection."))
        else f"text_model.{key}": value.contiguous()
        for key, value in text_encoder.state_dict().items()
        if not key.endswith("position_ids")
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
