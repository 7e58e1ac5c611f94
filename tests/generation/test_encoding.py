"""Prompts to text states: against token ids put together by hand, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbrush.assets.clip import clip_tokenizer
from hyperbrush.errors import UserError
from hyperbrush.generation.encoding import Encoded, emphasised, encode_prompts, split_chunks
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.text import build_text_encoder

START, END, COMMA, CAT, RED = 49406, 49407, 267, 2368, 736


@pytest.fixture(scope="module")
def model(make_tiny: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    """Real CLIP tokens, a text encoder of four layers in float64."""
    tokenizer = clip_tokenizer()
    torch.manual_seed(1)
    encoder = build_text_encoder(tokenizer, width=32, layers=4).double()
    for name, parameter in encoder.named_parameters():
        if "norm" in name:  # else a norm applied twice, or not at all, would hardly be seen
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return make_tiny(text_encoder=encoder, tokenizer=tokenizer).eval()


@pytest.fixture(scope="module")
def xl(model: LatentDiffusion) -> LatentDiffusion:
    """The text side of Stable Diffusion XL: two encoders, the second padded with "!" (0)."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    shape: dict[str, Any] = {
        "vocab_size": 49408,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "projection_dim": 12,
        "bos_token_id": START,
        "eos_token_id": 2,  # as the published checkpoints have it
    }
    torch.manual_seed(2)
    twice = LatentDiffusion.__new__(LatentDiffusion)
    torch.nn.Module.__init__(twice)
    twice.conditioning, twice.zero_empty_text = "text", False
    twice.text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=16, **shape)).double().eval()
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=24, **shape))
    twice.text_encoder_2 = second.double().eval()
    twice.tokenizer, twice.tokenizer_2 = clip_tokenizer(), clip_tokenizer("!")
    return twice


def row(*ids: int, pad: int = END) -> Tensor:
    """One chunk of 77 tokens."""
    return torch.tensor([[START, *ids, END, *[pad] * (75 - len(ids))]])


@torch.no_grad()
def by_hand(encoder: Any, ids: Tensor, layers: int) -> Tensor:
    """The states after some layers, with the final norm, layer by layer."""
    from transformers.masking_utils import create_causal_mask

    encoder = getattr(encoder, "text_model", encoder)
    states = encoder.embeddings(input_ids=ids)
    mask = create_causal_mask(encoder.config, inputs_embeds=states, attention_mask=None, past_key_values=None)
    for layer in encoder.encoder.layers[:layers]:
        states = layer(states, mask, is_causal=True)
        states = states[0] if isinstance(states, tuple) else states
    return encoder.final_layer_norm(states)


def ids_of(model: LatentDiffusion, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("text", ["", "cat", "a red cat, on a mat", "  Red\n CAT ", "cat " * 75])
def test_one_plain_chunk_is_encode_text_to_the_bit(model: LatentDiffusion, text: str) -> None:
    encoded = encode_prompts(model, [text])
    assert torch.equal(encoded.embeddings, model.encode_text([text]))
    assert encoded.pooled is None
    assert torch.equal(encoded.embeddings, encode_prompts(model, [text], emphasis=False).embeddings)


@pytest.mark.parametrize("layers", [4, 3, 2, 1])
def test_clip_skip_leaves_layers_out_and_keeps_the_norm(model: LatentDiffusion, layers: int) -> None:
    out = encode_prompts(model, ["red cat"], clip_skip=5 - layers).embeddings
    torch.testing.assert_close(out, by_hand(model.text_encoder, row(RED, CAT), layers), atol=1e-12, rtol=0)


def test_emphasis_by_hand(model: LatentDiffusion) -> None:
    z = by_hand(model.text_encoder, row(RED, CAT, CAT), 4)
    factors = torch.ones(77, dtype=torch.float64)
    factors[1], factors[2], factors[3] = 1.3, 1.1, 1 / 1.1
    weighted = z * factors[None, :, None]
    expected = weighted * z.mean() / weighted.mean()
    out = encode_prompts(model, ["(red:1.3)(cat)[cat]"]).embeddings
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    assert out.mean().item() == pytest.approx(z.mean().item())
    literal = encode_prompts(model, ["(red:1.3)(cat)[cat]"], emphasis=False).embeddings
    assert torch.equal(literal, model.encode_text(["(red:1.3)(cat)[cat]"]))


def test_emphasis_of_states_whose_mean_is_zero_stays_finite() -> None:
    states = torch.tensor([[[1.0, -1.0], [2.0, -2.0]]])
    assert torch.equal(emphasised(states, [1.0, 2.0]), torch.tensor([[[1.0, -1.0], [4.0, -4.0]]]))
    half = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    out = emphasised(half.half(), [1.0, 1.5, 1.0, 1.0, 1.0])
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), emphasised(half, [1, 1.5, 1, 1, 1]), atol=5e-3, rtol=5e-3)


def test_chunks_are_encoded_apart_and_joined(model: LatentDiffusion) -> None:
    text = "red " * 75 + "cat cat"
    out = encode_prompts(model, [text]).embeddings
    parts = [by_hand(model.text_encoder, ids, 4) for ids in (row(*[RED] * 75), row(CAT, CAT))]
    torch.testing.assert_close(out, torch.cat(parts, dim=1), atol=1e-12, rtol=0)
    assert out.shape == (1, 154, 32)


def test_each_chunk_keeps_its_own_mean(model: LatentDiffusion) -> None:
    plain = encode_prompts(model, ["red BREAK cat"]).embeddings
    out = encode_prompts(model, ["red BREAK (cat:1.5)"]).embeddings
    assert torch.equal(out[:, :77], plain[:, :77])
    assert not torch.allclose(out[:, 77:], plain[:, 77:])
    assert out[:, 77:].mean().item() == pytest.approx(plain[:, 77:].mean().item())


def chunks(model: LatentDiffusion, *parts: tuple[str, float]) -> list[list[int]]:
    """Each chunk's tokens without start, end and padding."""
    found = split_chunks(model.tokenizer, parts)
    assert all(len(c.ids) == len(c.weights) == 77 and c.ids[0] == START and END in c.ids for c in found)
    return [list(c.ids[1 : c.ids.index(END)]) for c in found]


def test_break_fills_the_chunk(model: LatentDiffusion) -> None:
    assert chunks(model, ("red", 1.0), ("BREAK", -1.0), ("cat", 1.0)) == [[RED], [CAT]]
    assert chunks(model, ("red", 1.0), ("BREAK", -1.0), ("", 1.0)) == [[RED]]
    assert chunks(model, ("", 1.0), ("BREAK", -1.0), ("cat", 1.0)) == [[], [CAT]]
    # Inside brackets the webui reads it as a word.
    assert chunks(model, ("red", 1.1), ("BREAK", -1.1), ("cat", 1.1)) == [[RED, *ids_of(model, "BREAK"), CAT]]


@pytest.mark.parametrize(
    ("before", "after", "first", "second"),
    [
        (60, 20, 61, 20),  # red×60 , cat×20: the comma stands at 60, 15 tokens from the end
        (55, 20, 56, 20),  # just near enough
        (54, 22, 75, 2),  # too far
        (74, 5, 75, 5),  # the comma is the last token of the chunk
        (75, 5, 75, 6),  # the comma itself opens the next chunk
        (30, 40, 71, None),  # fits
    ],
)
def test_a_comma_near_the_end_ends_the_chunk(
    model: LatentDiffusion, before: int, after: int, first: int, second: int | None
) -> None:
    found = chunks(model, ("red " * before + ", " + "cat " * after, 1.0))
    assert [len(chunk) for chunk in found] == [first] + ([] if second is None else [second])
    assert [token for chunk in found for token in chunk] == [RED] * before + [COMMA] + [CAT] * after


def test_weights_move_with_their_tokens(model: LatentDiffusion) -> None:
    one, two = split_chunks(model.tokenizer, [("red " * 60 + ",", 1.0), ("cat " * 20, 1.3)])
    assert set(one.weights) == {1.0}
    assert two.weights == (1.0, *[1.3] * 20, *[1.0] * 56)


def test_texts_of_one_call_get_equally_many_chunks(model: LatentDiffusion) -> None:
    long = "red " * 80
    both = encode_prompts(model, ["cat", long])
    empty = model.encode_text([""])
    assert torch.equal(both.embeddings[:1, :77], model.encode_text(["cat"]))
    assert torch.equal(both.embeddings[:1, 77:], empty)
    assert torch.equal(both.embeddings[1:], encode_prompts(model, [long]).embeddings)
    padded = encode_prompts(model, ["cat"], chunks=3).embeddings
    assert torch.equal(padded[:, 77:], torch.cat([empty, empty], dim=1))
    assert torch.equal(both[:1].embeddings, both.embeddings[:1])


def test_a_text_does_not_depend_on_its_neighbours(model: LatentDiffusion) -> None:
    texts = ["(red:1.4) cat", "cat", "[[cat]] (red:0.3)"]
    together = encode_prompts(model, texts).embeddings
    for i, text in enumerate(texts):
        assert torch.equal(together[i : i + 1], encode_prompts(model, [text]).embeddings)


def test_a_short_tokenizer_has_short_chunks(tiny: LatentDiffusion) -> None:
    tiny.eval()
    long = encode_prompts(tiny, ["red square " * 10])
    assert long.embeddings.shape[1] % 16 == 0
    assert long.embeddings.shape[1] > 16
    assert torch.equal(encode_prompts(tiny, ["cat face"]).embeddings, tiny.encode_text(["cat face"]))


def test_open_clip_pads_with_its_own_token(xl: LatentDiffusion) -> None:
    [chunk] = split_chunks(xl.tokenizer_2, [("cat", 1.0)])
    assert chunk.ids == (START, CAT, END, *[0] * 74)


@torch.no_grad()
def test_xl_reads_both_penultimate_layers_and_pools_the_first_chunk(xl: LatentDiffusion) -> None:
    encoded = encode_prompts(xl, ["red BREAK (cat:1.5)"])
    one, two = xl.text_encoder, xl.text_encoder_2
    columns, pooled = [], []
    for encoder, pad in ((one, END), (two, 0)):
        parts = []
        for ids, weight in ((RED, 1.0), (CAT, 1.5)):
            out = encoder(row(ids, pad=pad), output_hidden_states=True)
            z, factors = out.hidden_states[2], torch.ones(77, dtype=torch.float64)
            factors[1] = weight
            weighted = z * factors[None, :, None]
            parts.append(weighted * z.mean() / weighted.mean())
            pooled.append(out[0])
        columns.append(torch.cat(parts, dim=1))
    torch.testing.assert_close(encoded.embeddings, torch.cat(columns, dim=-1), atol=1e-12, rtol=0)
    assert encoded.embeddings.shape == (1, 154, 40)
    assert torch.equal(encoded.pooled, pooled[2])
    last = by_hand(two, row(RED, pad=0), 3)[:, 2]  # where the end stands
    torch.testing.assert_close(encoded.pooled, two.text_projection(last), atol=1e-12, rtol=0)


@torch.no_grad()
def test_xl_one_plain_chunk_is_text_conditions_to_the_bit(xl: LatentDiffusion) -> None:
    for zero in (False, True):
        xl.zero_empty_text = zero
        for text in ("red cat", ""):
            told, encoded = xl.text_conditions([text]), encode_prompts(xl, [text])
            assert torch.equal(told["context"], encoded.embeddings)
            assert torch.equal(told["pooled"], encoded.pooled)
            assert bool(encoded.embeddings.any()) == (not zero or bool(text))
    both = encode_prompts(xl, ["red", "cat"])
    assert torch.equal(both[1:].pooled, both.pooled[1:])
    assert torch.equal(
        encode_prompts(xl, ["red"], clip_skip=2).embeddings, encode_prompts(xl, ["red"]).embeddings
    )


def test_refuses(model: LatentDiffusion, xl: LatentDiffusion, make_tiny: Any) -> None:
    with pytest.raises(UserError, match="no text to encode"):
        encode_prompts(model, [])
    with pytest.raises(UserError, match="clip_skip 5 of a text encoder with 4 layers: give 1 to 4"):
        encode_prompts(model, ["cat"], clip_skip=5)
    with pytest.raises(UserError, match="clip_skip 0"):
        encode_prompts(model, ["cat"], clip_skip=0)
    with pytest.raises(UserError, match="clip_skip 3: Stable Diffusion XL"):
        encode_prompts(xl, ["cat"], clip_skip=3)
    with pytest.raises(UserError, match="has 2 chunks, more than chunks=1; give 2 or more"):
        encode_prompts(model, ["red BREAK cat"], chunks=1)
    with pytest.raises(UserError, match="conditioned by 'none' and reads no captions"):
        encode_prompts(make_tiny(conditioning="none"), ["cat"])
    assert isinstance(encode_prompts(model, ["cat"]), Encoded)
