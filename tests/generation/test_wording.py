"""Pictures of prompts that change with the step or are composed, against loops written down here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import hyperbrush as hb
from hyperbrush.generation import generate
from hyperbrush.generation.encoding import encode_prompts
from hyperbrush.hypernetworks.attaching.kv_cache import KVCache
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.prompted import padded
from hyperbrush.ldm.sampling.samplers import make_scheduler, sample


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained("emoji")


@pytest.fixture
def library(emoji: LatentDiffusion, tmp_path: Path) -> Path:
    torch.manual_seed(8)
    hn = hb.AttentionHypernetwork.for_unet(emoji.unet, name="ink", weight_init="KaimingNormal")
    hn.save(tmp_path / "networks" / "ink.safetensors")
    return tmp_path / "networks"


def drawn(prompt: Any, emoji: LatentDiffusion, **settings: Any) -> list[Tensor]:
    """The latents after each step."""
    seen: list[Tensor] = []
    common: dict[str, Any] = {"seed": 3, "steps": 4, "sampler": "Euler", "guidance_scale": 3.0}
    generate(prompt, model=emoji, **common | settings, on_step=lambda i, n, x: seen.append(x.clone()))
    return seen


def by_hand(
    emoji: LatentDiffusion,
    texts: list[list[tuple[str, float]]],
    *,
    sampler: str = "Euler",
    discretisation: str = "diffusers",
    negatives: list[str] | None = None,
    scale: float = 3.0,
    steps: int = 4,
) -> Tensor:
    """Latents of seed 3, the network asked once for each text: (text, weight) of each evaluation in turn."""

    def state(text: str) -> Tensor:
        return encode_prompts(emoji, [text]).embeddings

    evaluations = iter(zip(texts, negatives or [""] * len(texts), strict=True))

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        said, negative = next(evaluations)
        null = emoji.diffusion(latents, timestep, context=state(negative))
        out = null.clone()
        for text, weight in said:
            out += scale * weight * (emoji.diffusion(latents, timestep, context=state(text)) - null)
        return out

    scheduler = make_scheduler(sampler, emoji.diffusion.scheduler_config)
    with torch.no_grad():
        return sample(predict, scheduler, emoji.latent_shape, [3], steps, discretisation=discretisation)


CAT, DOG = ("cat face", 1.0), ("dog face", 1.0)


@pytest.mark.parametrize(
    ("prompt", "evaluations", "settings"),
    [
        ("[cat face:dog face:0.5]", [[CAT]] * 2 + [[DOG]] * 2, {}),
        ("[cat:dog:3] face", [[CAT]] * 3 + [[DOG]], {}),
        ("[cat|dog] face", [[CAT], [DOG]] * 2, {}),
        ("[cat face::0.5]", [[CAT]] * 2 + [[("", 1.0)]] * 2, {}),
        ("[cat face:0.5]", [[("", 1.0)]] * 2 + [[CAT]] * 2, {}),
        ("[[cat|dog] face:dog face:0.75]", [[CAT], [DOG], [CAT], [DOG]], {}),
        ("([cat:dog:0.5]:1.3) face", [[("(cat:1.3) face", 1.0)]] * 2 + [[("(dog:1.3) face", 1.0)]] * 2, {}),
        ("cat face :0.6 AND dog face :0.9", [[("cat face", 0.6), ("dog face", 0.9)]] * 4, {}),
        ("cat face AND [dog:cat:2] face", [[CAT, DOG]] * 2 + [[CAT, CAT]] * 2, {}),
        ("cat face :0.5", [[("cat face", 0.5)]] * 4, {}),
        ("cat face AND dog face", [[CAT, DOG]] * 4, {"guidance_scale": 1.0}),
        # The webui counts evaluations from 0, so that what holds first does so once more.
        ("[cat:dog:0.5] face", [[CAT]] * 3 + [[DOG]], {"discretisation": "webui"}),
        ("[cat|dog] face", [[CAT], [CAT], [DOG], [CAT]], {"discretisation": "webui"}),
        ("[cat:dog:0.5] face", [[CAT]] * 4 + [[DOG]] * 3, {"sampler": "Heun"}),
        ("[cat:dog:2] face", [[CAT]] * 3 + [[DOG]] * 4, {"sampler": "Heun", "discretisation": "webui"}),
        ("[cat:dog:0.5] face", [[CAT]] * 5 + [[DOG]] * 2, {"sampler": "Heun", "discretisation": "webui"}),
    ],
)
def test_each_step_is_told_what_holds_there(
    emoji: LatentDiffusion, prompt: str, evaluations: list[Any], settings: dict[str, Any]
) -> None:
    out = drawn(prompt, emoji, **settings)[-1]
    settings = {"scale" if k == "guidance_scale" else k: v for k, v in settings.items()}
    expected = by_hand(emoji, evaluations, **settings)
    assert (out - expected).norm() < 2e-4 * expected.norm()
    other = by_hand(emoji, [[CAT]] * 7, **settings)
    assert (out - other).norm() > 1e-3 * expected.norm()


def test_the_negative_prompt_changes_too(emoji: LatentDiffusion) -> None:
    out = drawn("cat face", emoji, negative="[red:blue:0.5]")[-1]
    expected = by_hand(emoji, [[CAT]] * 4, negatives=["red"] * 2 + ["blue"] * 2)
    assert (out - expected).abs().max() < 2e-4 * expected.abs().max()


def test_editing_leaves_the_first_steps_to_the_bit(emoji: LatentDiffusion) -> None:
    edited, plain = drawn("[cat face:dog face:0.5]", emoji), drawn("cat face", emoji)
    assert [bool((a == b).all()) for a, b in zip(edited, plain, strict=True)] == [True, True, False, False]


def test_a_start_picture_has_fewer_steps_to_share(emoji: LatentDiffusion) -> None:
    start = {"image": Image.new("RGB", (64, 64), "orange"), "image_strength": 0.5, "steps": 8}
    edited, plain = drawn("[cat:dog:0.5] face", emoji, **start), drawn("cat face", emoji, **start)
    assert [bool((a == b).all()) for a, b in zip(edited, plain, strict=True)] == [True, True, False, False]


def test_pictures_of_a_batch_stay_apart(emoji: LatentDiffusion, library: Path) -> None:
    prompts = [
        "[cat|dog] face <hypernet:ink:0.4>",
        "[sun|moon] face",
        "cat face AND red heart :0.5 <hypernet:ink:0.4:attn=cross>",
        "cat face",
        "sun AND (red:1.2) moon",
        "[cat:dog:0.5] face",
    ]
    common: dict[str, Any] = {"model": emoji, "seed": 4, "steps": 4, "hypernetworks": library}
    together = generate(prompts, **common)
    for prompt, picture in zip(prompts, together, strict=True):
        [alone] = generate(prompt, **common)
        one, other = (np.asarray(p.image).astype(int) for p in (picture, alone))
        assert np.abs(one - other).max() <= 1, prompt
        assert picture.parameters == alone.parameters


def test_what_cross_attention_keeps_is_not_kept_too_long(
    emoji: LatentDiffusion, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "[cat|dog] face AND [sun:moon:0.5] <hypernet:ink:0.7>"
    kept = drawn(prompt, emoji, hypernetworks=library)[-1]
    plain = drawn("[cat|dog] face AND [sun:moon:0.5]", emoji, hypernetworks=library)[-1]
    monkeypatch.setattr(KVCache, "acts", False)
    anew = drawn(prompt, emoji, hypernetworks=library)[-1]
    assert torch.allclose(kept, anew, atol=1e-5)
    assert not torch.allclose(kept, plain, atol=1e-2)


def test_parts_of_other_lengths_repeat_their_last_token() -> None:
    short, long = torch.arange(6.0).view(1, 3, 2), torch.zeros(1, 5, 2)
    one, other = padded([short, long])
    assert other is long
    assert torch.equal(one[:, :3], short)
    assert torch.equal(one[:, 3:], short[:, 2:].expand(1, 2, 2))


def test_words_of_every_step_are_looked_up(emoji: LatentDiffusion) -> None:
    [picture] = generate("[cat:zyxxy:0.5] face AND qwrrt", model=emoji, seed=0, steps=2)
    [note] = picture.notes
    assert "'zyxxy'" in note
    assert "'qwrrt'" in note
    assert "'0'" not in note
