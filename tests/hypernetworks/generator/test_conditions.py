"""Conditions: read through a pipeline's own encoders, any number of references in any order, several at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import (
    ConditionSource,
    Hypernetwork,
    ImageCondition,
    TargetNetwork,
    TaskCondition,
    TextCondition,
)

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")


def near(a: Any, b: Any) -> bool:
    return all(torch.allclose(a.delta(n), b.delta(n), atol=1e-5) for n in a.layers)


@pytest.fixture
def net(make_pipe: Make, make_net: Make) -> Hypernetwork:
    made: Hypernetwork = make_net(
        TargetNetwork(make_pipe()), text_width=None, latent_channels=None, tasks=["a", "b"]
    )
    return made


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_text_through_the_pipelines_own_encoder(family: str, make_pipe: Make) -> None:
    pipe = make_pipe("text", family)
    source = ConditionSource(pipe)
    states = source.prepare(TextCondition(["a red heart", "cat"]))
    assert isinstance(states, TextCondition)
    assert states.states is not None
    assert states.mask is not None
    if family == "sd1":
        expected, _ = pipe.encode_prompt(["a red heart", "cat"], "cpu", 1, False)
    else:
        expected = pipe.encode_prompt(
            ["a red heart", "cat"], device="cpu", do_classifier_free_guidance=False
        )[0]
    assert torch.allclose(states.states, expected, atol=1e-5)
    assert source.text_width == expected.shape[-1]
    ids = pipe.tokenizer(["a red heart", "cat"]).input_ids
    assert states.mask.sum(1).tolist() == [len(row) for row in ids]  # from the start token to the end token
    single = source.prepare(TextCondition("cat"))
    assert torch.allclose(single.states, expected[1], atol=1e-5)


def test_pictures_through_the_pipelines_own_vae(make_pipe: Make, pictures: Path) -> None:
    pipe = make_pipe()
    source = ConditionSource(pipe)
    paths = sorted(pictures.glob("*.png"))[:3]
    images = [Image.open(path) for path in paths]
    found = source.prepare(ImageCondition(paths))
    assert found.latents.shape == (3, 4, 8, 8)
    assert torch.allclose(found.latents, source.prepare(ImageCondition(images)).latents)
    small = images[0].convert("RGB").resize((16, 16), Image.Resampling.LANCZOS)
    pixels = (
        torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(16, 16, 3).permute(2, 0, 1) / 255
    )
    with torch.no_grad():
        expected = pipe.vae.encode(pixels[None] * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    assert torch.allclose(found.latents[:1], expected, atol=1e-5)
    assert torch.allclose(source.prepare(ImageCondition(pixels)).latents, expected, atol=1e-5)
    batch = source.prepare(ImageCondition([paths[:1], paths]))
    assert batch.latents.shape == (2, 3, 4, 8, 8)
    assert batch.present.tolist() == [[True, False, False], [True, True, True]]
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    white = Image.new("RGB", (16, 16), "white")
    assert torch.allclose(*(source.prepare(ImageCondition(i)).latents for i in (clear, white)))


def test_references_in_any_order_and_number(net: Hypernetwork) -> None:
    with torch.no_grad():
        references = latents(5)
        five = net.generate_weights(ImageCondition(latents=references))
        assert near(five, net.generate_weights(ImageCondition(latents=references.flip(0))))
        assert not near(five, net.generate_weights(ImageCondition(latents=references[:4])))
        batch = torch.stack([references, torch.cat([references[:2], 9 * latents(3, seed=3)])])
        present = torch.tensor([[True] * 5, [True, True, False, False, False]])
        both = net.generate_weights(ImageCondition(latents=batch, present=present))
        assert near(both[0], five)
        assert near(both[1], net.generate_weights(ImageCondition(latents=references[:2])))


def test_latents_of_any_size_and_their_statistics(net: Hypernetwork) -> None:
    with torch.no_grad():
        for size in ((6, 9), (16, 8), (3, 3)):
            weights = net.generate_weights(ImageCondition(latents=torch.randn(2, 4, *size)))
            assert all(bool(d.isfinite().all()) for d in weights.delta().values())
        flat = torch.zeros(1, 4, 8, 8)
        assert all(
            bool(d.isfinite().all())
            for d in net.generate_weights(ImageCondition(latents=flat)).delta().values()
        )


def test_several_at_once(net: Hypernetwork) -> None:
    text = TextCondition("a red heart")
    image, task = ImageCondition(latents=latents(2)), TaskCondition("a")
    with torch.no_grad():
        alone = [net.generate_weights(c) for c in (text, image, task)]
        together = net.generate_weights([text, image, task])
        assert near(together, net.generate_weights([task, text, image]))
        assert not any(near(together, one) for one in alone)
        assert not near(alone[2], net.generate_weights(TaskCondition("b")))
        # One text for a batch of pictures.
        batch = net.generate_weights([text, ImageCondition(latents=latents(2, 2))])
        assert batch.batch == 2
        assert near(batch[0], net.generate_weights([text, ImageCondition(latents=latents(2, 2)[0])]))
        tasks = net.generate_weights(TaskCondition(["a", "b"]))
        assert near(tasks[0], alone[2])


def test_a_vision_model_of_ones_own(make_pipe: Make, make_net: Make, pictures: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=20,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    vision = CLIPVisionModel(config).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    target = TargetNetwork(make_pipe())
    net = make_net(target, vision=vision, processor=processor)
    assert net.settings.image_width == 20
    assert not any("vision" in name for name in net.state_dict())
    paths = sorted(pictures.glob("*.png"))[:2]
    found = net.source.prepare(ImageCondition(paths))
    assert found.features.shape == (2, 5, 20)
    with torch.no_grad():
        weights = net.generate_weights(ImageCondition(paths))
        assert near(weights, net.generate_weights(ImageCondition(paths[::-1])))
        assert not near(weights, net.generate_weights(ImageCondition(latents=found.latents)))
        assert not near(weights, net.generate_weights(ImageCondition(features=found.features)))
    plain = make_net(target)
    with pytest.raises(UserError, match="this encoder was made without one"):
        plain.generate_weights(ImageCondition(features=found.features))
    with pytest.raises(UserError, match="needs its image processor"):
        ConditionSource(None, vision)


def test_the_embedded_model_without_a_pipeline() -> None:
    source = ConditionSource()
    assert (source.text_width, source.latent_channels, source.image_width) == (128, 4, None)
    assert source._model is None  # not opened to know its widths
    assert source.prepare(TextCondition("red heart")).states.shape[-1] == 128
    assert source.prepare(ImageCondition(torch.rand(3, 64, 64))).latents.shape == (1, 4, 16, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextCondition(), "one of the two"),
        (lambda: TextCondition("a", states=torch.zeros(1, 2)), "one of the two"),
        (lambda: TextCondition([]), "a text or a list of texts"),
        (lambda: TextCondition(states=torch.zeros(4)), "expected .tokens, width."),
        (lambda: ImageCondition(), "one of the two"),
        (lambda: ImageCondition([]), "at least one picture"),
        (lambda: ImageCondition([["a.png"], []]), "at least one picture"),
        (lambda: ImageCondition(latents=torch.zeros(4, 8, 8)), "references first"),
        (lambda: TaskCondition([]), "a name or a list of names"),
    ],
)
def test_impossible_conditions(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (5.0, "is no condition: expected a text, a picture or its path, TextCondition"),
        ([], "an empty list is no condition"),
        ("nowhere.png", "nowhere.png is no file"),
        (["nowhere.png", ["other.png"]], "pictures stand beside lists of pictures"),
        (torch.full((3, 8, 8), 2.0), "condition tensor 8 wide"),
        ({"step": 3}, r"a batch with \['step'\] says nothing to generate weights from"),
        ([TextCondition("a"), 5], "5 is no condition"),
        (torch.zeros(2, 32), r"expected \(batch, tokens, embedding_dim\)"),
        (torch.zeros(2, 3, 31), "condition tensor 31 wide, but the hypernetwork was made for 32"),
        (TextCondition(states=torch.zeros(3, 25)), "text states 25 wide"),
        (ImageCondition(latents=torch.zeros(1, 3, 8, 8)), "latents of 3 channels"),
        (
            ImageCondition(latents=torch.zeros(1, 4, 8, 8), features=torch.zeros(1, 2, 12)),
            "features of a vision model, and this encoder was made without one",
        ),
        (TaskCondition("c"), "unknown task 'c'.*Hypernetwork.tasks="),
        (
            [TextCondition(["a", "b"]), TaskCondition(["a", "b", "a"])],
            r"different numbers of samples: \[2, 3\]",
        ),
        (ImageCondition("nowhere.png"), "nowhere.png is no file"),
        (ImageCondition([5]), "5 is no picture"),
        (ImageCondition(torch.zeros(1, 8, 8)), "is no picture"),
    ],
)
def test_conditions_the_net_cannot_read(condition: Any, message: str, net: Hypernetwork) -> None:
    with pytest.raises(UserError, match=message):
        net.generate_weights(condition)


def test_what_nobody_has_read(net: Hypernetwork) -> None:
    with pytest.raises(UserError, match="nobody has read yet"):
        net.encoder([TextCondition("a")])


def test_texts_paths_pictures_and_batches_as_they_are(net: Hypernetwork, tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "ink.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(file)
    picture, pixels = Image.open(file), torch.rand(2, 3, 64, 64)
    latents = net.source.model.latents_of({"images": pixels * 2 - 1})
    for given, plain in (
        ("a red heart", TextCondition("a red heart")),
        (["a red heart", "ink"], TextCondition(["a red heart", "ink"])),
        (file, ImageCondition(file)),
        (str(file), ImageCondition(file)),
        (picture, ImageCondition(file)),
        (pixels[0], ImageCondition(pixels[0])),
        ([picture, pixels[0]], ImageCondition([file, pixels[0]])),
        (pixels, ImageCondition(list(pixels))),
        ([[file], [pixels[0], pixels[1]]], ImageCondition([[file], [pixels[0], pixels[1]]])),
        (["ink", file, TaskCondition("a")], [TextCondition("ink"), ImageCondition(file), TaskCondition("a")]),
        ({"images": pixels * 2 - 1, "captions": ["x", "y"]}, ImageCondition([[pixels[0]], [pixels[1]]])),
        ({"latents": latents, "captions": ["x", "y"]}, ImageCondition(latents=latents[:, None])),
        ({"captions": ["x", "y"]}, TextCondition(["x", "y"])),
        ({"latents": latents, "condition": "ink"}, TextCondition("ink")),
    ):
        with torch.no_grad():
            found, expected = net.generate_weights(given), net.generate_weights(plain)
        assert found.batch == expected.batch, given
        assert near(found, expected), given
    assert not near(net.generate_weights("ink"), net.generate_weights(file))


def test_what_it_is_known_not_to_have_learned_from(net: Hypernetwork) -> None:
    net.learned = ("pictures", "task b")
    try:
        net.generate_weights(ImageCondition(torch.rand(3, 64, 64)))
        net.generate_weights(TaskCondition("b"))
        net.generate_weights(None)
        with pytest.raises(UserError, match="unknown task 'c'"):
            net.generate_weights(TaskCondition("c"))
        with pytest.raises(
            UserError, match="trained on pictures, task b alone and .* its task a, which no training"
        ):
            net.generate_weights(TaskCondition(["b", "a"]))
        with pytest.raises(UserError, match="does not know what words mean"):
            net.generate_weights([TextCondition("ink"), TaskCondition("b")])
        features = ImageCondition(latents=torch.zeros(1, 4, 8, 8), features=torch.zeros(1, 2, 12))
        with pytest.raises(UserError, match="what a vision model sees: leave the vision model out"):
            net.generate_weights(features)
        net.learned = ("features", "pictures")
        with pytest.raises(UserError, match=r"net.bind\(model, vision=…, processor=…\)"):
            net.generate_weights(ImageCondition(torch.rand(3, 64, 64)))
        net.train().generate_weights(TextCondition("ink"))  # it may yet learn from words
        assert net.learned == ("features", "pictures")
    finally:
        net.learned = ()
        net.eval()
