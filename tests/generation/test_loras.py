"""LoRA files named in prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.generation import generate, read_infotext
from hyperbrush.generation.loras import lora_hash, loras_at_work
from hyperbrush.generation.repeat import lora_differences
from hyperbrush.hypernetworks import HypernetworkLibrary
from hyperbrush.ldm.models import LatentDiffusion

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained("emoji")


@pytest.fixture(scope="module")
def folders(emoji: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/hypernetworks with a network, models/loras with one for the UNet and one for the text encoder."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(8)
    hn = hb.AttentionHypernetwork.for_unet(emoji.unet, name="ink", weight_init="KaimingNormal")
    hn.save(root / "hypernetworks" / "ink.pt")
    (root / "loras").mkdir()
    for name, module, prefix, wanted in (
        ("look", emoji.unet, "unet", "attn2.to_v"),
        ("words", emoji.text_encoder, "text_encoder", "self_attn.v_proj"),
    ):
        state = {}
        for path, layer in module.named_modules():
            if path.endswith(wanted):
                inner = path if path.startswith("text_model.") or prefix == "unet" else f"text_model.{path}"
                state[f"{prefix}.{inner}.lora_A.weight"] = torch.randn(4, layer.in_features) * 0.3
                state[f"{prefix}.{inner}.lora_B.weight"] = torch.randn(layer.out_features, 4) * 0.3
        save_file(state, root / "loras" / f"{name}.safetensors")
    save_file({"x": torch.zeros(1)}, root / "loras" / "other.safetensors")
    return root


def pixels(prompt: Any, emoji: LatentDiffusion, folders: Path, **more: Any) -> list[np.ndarray]:
    made = generate(prompt, model=emoji, seed=3, steps=3, hypernetworks=folders / "hypernetworks", **more)
    return [np.asarray(one.image).astype(int) for one in made]


@pytest.mark.parametrize("tag", ["<lora:look:1>", "<lora:words:1>", "<lora:look:0.5> <hypernet:ink:0.5>"])
def test_a_lora_changes_its_own_picture_and_leaves_the_model(
    emoji: LatentDiffusion, folders: Path, tag: str
) -> None:
    before = {name: value.clone() for name, value in emoji.state_dict().items()}
    prompts = ["cat face", f"cat face {tag}"]
    plain, changed = pixels(prompts, emoji, folders)
    assert np.abs(plain - changed).max() > 2
    [alone], [again] = pixels(prompts[1], emoji, folders), pixels("cat face", emoji, folders)
    assert np.abs(alone - changed).max() <= 1
    assert np.abs(again - plain).max() <= 1
    after = emoji.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_strengths(emoji: LatentDiffusion, folders: Path) -> None:
    [plain] = pixels("cat face", emoji, folders)
    [off] = pixels("cat face <lora:look:0>", emoji, folders)
    assert (plain == off).all()
    [half], [twice] = (
        pixels("cat face <lora:look:0.6>", emoji, folders),
        pixels("cat face <lora:look:0.3> <lora:look:0.3>", emoji, folders),
    )
    assert np.abs(half - twice).max() <= 1
    [text_alone] = pixels("cat face <lora:look:te=1:unet=0>", emoji, folders)
    assert np.abs(text_alone - plain).max() <= 1


def test_what_is_told_and_written(emoji: LatentDiffusion, folders: Path) -> None:
    [picture] = generate(
        "cat <lora:look:0.4>", model=emoji, seed=3, steps=1, hypernetworks=folders / "hypernetworks"
    )
    assert any(note.startswith("look: LoRA, ") and "layers of unet" in note for note in picture.notes)
    digest = lora_hash(folders / "loras/look.safetensors")
    info = read_infotext(picture.parameters)
    assert info.fields["Lora hashes"] == f"look: {digest}"
    library = HypernetworkLibrary(folders / "loras")
    assert lora_differences(info, library) == []
    other = read_infotext(picture.parameters.replace(digest, "0123456789ab"))
    [note] = lora_differences(other, library)
    assert note == f"the LoRA look is another file than the picture's: {digest}, not 0123456789ab"


def test_one_of_a_pack(emoji: LatentDiffusion, folders: Path) -> None:
    from hyperbrush.hypernetworks.convert.compression import compress
    from hyperbrush.hypernetworks.generator import GeneratedWeights

    look = GeneratedWeights.load(folders / "loras/look.safetensors")
    compress({"look": look}, error=0.01).save(folders / "loras/all.pack.safetensors")
    [alone], [packed] = (pixels(f"cat face <lora:{n}:1>", emoji, folders) for n in ("look", "all/look"))
    assert np.abs(alone - packed).mean() < 4 < np.abs(alone - pixels("cat face", emoji, folders)[0]).mean()


def test_what_is_missing_or_no_lora(emoji: LatentDiffusion, folders: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown LoRA 'lok'; did you mean 'look'"):
        pixels("cat <lora:lok:1>", emoji, folders)
    with pytest.raises(UserError, match=r"no LoRA folder at .*nowhere"):
        pixels("cat <lora:look:1>", emoji, folders, loras=tmp_path / "nowhere")
    [picture] = generate(
        "cat <lora:lok:1>",
        model=emoji,
        seed=3,
        steps=1,
        hypernetworks=folders / "hypernetworks",
        missing="warn",
    )
    assert any(note.startswith("drawn without the LoRA 'lok': unknown LoRA") for note in picture.notes)
    with pytest.raises(UserError, match=r"other\.safetensors"):
        pixels("cat <lora:other:1>", emoji, folders)
    with pytest.raises(UserError, match="negative prompt holds"):
        pixels("cat", emoji, folders, negative="<lora:look:1>")
    with (
        loras_at_work(emoji, {folders / "loras/look.safetensors": (1.0, 1.0)}),
        pytest.raises(UserError, match="has LoRAs loaded already"),
    ):
        pixels("cat <lora:look:1>", emoji, folders)


def test_a_lora_of_another_model(emoji: LatentDiffusion, folders: Path) -> None:
    layer = next(p for p, _ in emoji.unet.named_modules() if p.endswith("attn2.to_v"))
    state = {
        f"unet.{layer}.lora_A.weight": torch.zeros(4, 7),
        f"unet.{layer}.lora_B.weight": torch.zeros(9, 4),
    }
    save_file(state, folders / "loras" / "foreign.safetensors")
    with pytest.raises(UserError, match=r"foreign\.safetensors is a LoRA for another model"):
        pixels("cat <lora:foreign:1>", emoji, folders)
    pixels("cat", emoji, folders)


def test_without_peft_one_line_says_what_to_install(
    emoji: LatentDiffusion, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.USE_PEFT_BACKEND", False)
    with pytest.raises(UserError, match="<lora:look> needs the package peft: pip install peft"):
        generate("cat <lora:look:1>", model=emoji, hypernetworks=folders / "hypernetworks", steps=1)
