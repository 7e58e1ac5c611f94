"""Contexts of real generations: what the attentions see, evenly, bounded, repeatable."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.hypernetworks.attaching.contexts import sample_attention_inputs, sample_contexts
from hyperbrush.hypernetworks.attaching.output_error import (
    attention_error,
    attention_output,
    own_keys_and_values,
)
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.modules.attention_sites import find_attentions

PROMPTS = ["red square", "green circle", "cat face"]


def rows_of(tensor: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in tensor.float().reshape(-1, tensor.shape[-1])}


def test_they_are_what_the_attentions_see(tiny: LatentDiffusion) -> None:
    """An independent record of to_k's inputs holds every sampled row, and every call whole."""
    seen: dict[str, set[bytes]] = {}
    handles = []
    for site, attention in find_attentions(tiny.unet):

        def note(module: Any, args: Any, path: str = site.path) -> None:
            seen.setdefault(path, set()).update(rows_of(args[0]))

        handles.append(attention.to_k.register_forward_pre_hook(note))
    found = sample_attention_inputs(tiny, PROMPTS, steps=3, limit=50, calls=4, queries=5)
    for handle in handles:
        handle.remove()
    assert found.keys() == seen.keys()
    for site, _ in find_attentions(tiny.unet):
        inputs = found[site.path]
        assert 10 <= len(inputs.contexts) <= 50
        assert rows_of(inputs.contexts) <= seen[site.path]
        # Three steps of one batch of three pictures: three calls there are, no four.
        assert len(inputs.calls) == 3
        for call in inputs.calls:
            assert rows_of(call.context) <= seen[site.path]
            assert call.hidden.shape == (1, 5, site.query_width)
            assert call.context.shape[2] == site.context_width
        if site.kind == "attn2":
            assert {call.context.shape[1] for call in inputs.calls} == {16}


def test_equal_seeds_equal_contexts_and_the_model_as_it_was(tiny: LatentDiffusion) -> None:
    tiny.train()
    hooks = [len(m._forward_pre_hooks) for m in tiny.modules()]
    first = sample_contexts(tiny, PROMPTS, steps=2, seed=3, limit=64)
    again = sample_contexts(tiny, PROMPTS, steps=2, seed=3, limit=64)
    other = sample_contexts(tiny, PROMPTS, steps=2, seed=4, limit=64)
    assert all(torch.equal(first[path], again[path]) for path in first)
    assert not any(torch.equal(first[path], other[path]) for path in first)
    assert tiny.training
    assert tiny.unet.training
    assert [len(m._forward_pre_hooks) for m in tiny.modules()] == hooks


def test_options_change_what_is_seen(tiny: LatentDiffusion) -> None:
    def crossing(**settings: Any) -> set[bytes]:
        found = sample_contexts(tiny, ["red square"], steps=2, **settings)
        return set().union(*(rows_of(v) for k, v in found.items() if k.endswith("attn2")))

    plain = crossing()
    with torch.no_grad():
        texts, empty, negative = (rows_of(tiny.encode_text([t])) for t in ("red square", "", "blue square"))
    assert plain == texts | empty
    assert crossing(guidance_scale=1.0) == texts
    assert crossing(negative="blue square") == texts | negative
    by_sampler = [sample_contexts(tiny, ["cat"], steps=2, sampler=s) for s in ("DDIM", "Euler")]
    assert any(not torch.equal(by_sampler[0][path], by_sampler[1][path]) for path in by_sampler[0])


def test_default_prompts_bring_many_texts(tiny: LatentDiffusion) -> None:
    found = sample_contexts(tiny, steps=1, limit=2000)
    crossing = [v for k, v in found.items() if k.endswith("attn2")]
    assert all(len(v) > 1000 for v in crossing)
    width = crossing[0].shape[1]
    assert torch.linalg.matrix_rank(crossing[0].double()) == width


def test_bare_though_networks_are_attached(tiny: LatentDiffusion) -> None:
    hn = AttentionHypernetwork.for_unet(tiny.unet, weight_init="XavierNormal")
    with attach(tiny, hn):
        attached = sample_contexts(tiny, ["red square"], steps=1, guidance_scale=1.0)
    bare = sample_contexts(tiny, ["red square"], steps=1, guidance_scale=1.0)
    first, *rest = [path for path in bare if path.endswith("attn1")]
    assert torch.equal(attached[first], bare[first])  # nothing acted before it
    assert not torch.equal(attached[rest[-1]], bare[rest[-1]])
    for path in bare:
        if path.endswith("attn2"):
            assert torch.equal(attached[path], bare[path])


def test_a_pipeline_gives_what_its_model_gives(tiny: LatentDiffusion) -> None:
    pipe = tiny.pipeline()
    pipe.unet.train()
    from_pipe = sample_contexts(pipe, PROMPTS, steps=2, limit=64)
    assert pipe.unet.training
    from_model = sample_contexts(tiny, PROMPTS, steps=2, limit=64)
    assert all(torch.equal(from_pipe[path], from_model[path]) for path in from_model)


def test_fusing_takes_its_contexts_from_here(tiny: LatentDiffusion) -> None:
    hn = AttentionHypernetwork.for_unet(tiny.unet, weight_init="XavierNormal", activation="relu")
    with torch.no_grad(), attach(tiny.pipeline(), (hn, 0.5)) as attached:
        report = attached.fuse(approximate=True)
        assert report is not None
        assert all(0 < error < 1 for error in report.errors.values())


def test_a_model_without_texts(make_tiny: Callable[..., LatentDiffusion]) -> None:
    found = sample_contexts(make_tiny(conditioning="none"), ["two", "pictures"], steps=2)
    assert found
    assert all(torch.isfinite(v).all() for v in found.values())


def test_what_cannot_be_sampled(make_tiny: Callable[..., LatentDiffusion], tiny: LatentDiffusion) -> None:
    with pytest.raises(UserError, match=r"UNet2DConditionModel alone cannot draw.*hand over the pipeline"):
        sample_contexts(tiny.unet)
    with pytest.raises(UserError, match="conditioned by 'class'"):
        sample_contexts(make_tiny(conditioning="class", num_classes=3))
    with pytest.raises(UserError, match="nothing to sample"):
        sample_contexts(tiny, [])
    with pytest.raises(UserError, match="nothing to sample"):
        sample_contexts(tiny, limit=0)


@torch.no_grad()
def test_the_output_is_the_attentions_own(tiny: LatentDiffusion) -> None:
    site, attention = find_attentions(tiny.unet)[1]
    module: Any = attention.double()
    hidden = torch.randn(1, 9, site.query_width, dtype=torch.float64)
    context = torch.randn(1, 6, site.context_width, dtype=torch.float64)
    made = attention_output(module, hidden, *own_keys_and_values(module)(context))
    torch.testing.assert_close(made, module(hidden, encoder_hidden_states=context))


@torch.no_grad()
def test_errors_are_relative_to_the_output(tiny: LatentDiffusion) -> None:
    inputs = sample_attention_inputs(tiny, PROMPTS, steps=2)
    site, attention = find_attentions(tiny.unet)[0]
    own = own_keys_and_values(attention)
    calls = inputs[site.path].calls

    def doubled(context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = own(context)
        return keys, 2 * values

    def shifted(context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = own(context)
        return keys + torch.ones(keys.shape[-1]).double(), values

    attention.to_out[0].bias.zero_()  # type: ignore[index, union-attr, operator]
    assert attention_error(attention, own, own, calls).relative == 0
    assert attention_error(attention, own, doubled, calls).relative == pytest.approx(1)
    assert attention_error(attention, doubled, own, calls).of_change == pytest.approx(1)
    # A constant in the keys cancels in the softmax.
    assert attention_error(attention, own, shifted, calls).relative < 1e-12
    with pytest.raises(UserError, match="no calls"):
        attention_error(attention, own, own, [])
