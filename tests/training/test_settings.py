"""Each setting of the config models reaches what it names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import hyperbrush as hb
from hyperbrush.assets import style_folder
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.attention.config import HypernetworkConfig
from hyperbrush.training.attention.run import HypernetworkRun, open_network
from hyperbrush.training.data.pictures import FolderConfig, PictureSettings, as_mixture
from hyperbrush.training.generator.config import GeneratorConfig, GeneratorNetwork
from hyperbrush.training.loop.config import OptimizerConfig, TrainerConfig


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained("emoji")


@pytest.fixture(scope="module")
def odd_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transparent pictures of two shapes with tags for names, a mask beside each."""
    folder = tmp_path_factory.mktemp("odd")
    for number, size in enumerate([(64, 64), (128, 64), (64, 160)]):
        picture = Image.new("RGBA", size, (0, 0, 0, 0))
        picture.paste((200, 40, 90, 255), (0, 0, size[0] // 2, size[1]))
        name = f"{number}-red; big, square, old"
        picture.save(folder / f"{name}.png")
        mask = Image.new("L", size)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        mask.save(folder / f"{name}.mask.png")
    return folder


def seen(folder: Path, settings: dict[str, Any]) -> list[Any]:
    """All that four epochs of a folder show, as values that compare."""
    data = as_mixture(
        [FolderConfig(path=str(folder))],
        PictureSettings(flip=0.0, **settings),
        size=settings.get("size", 32),
        downscale=4,
        multiple=8,
        seed=0,
    )
    found: list[Any] = []
    for epoch in range(4):
        for index in range(len(data)):
            example = data.example(index, epoch)
            mask = example.get("mask")
            found += [example["image"].tolist(), example["caption"], None if mask is None else mask.tolist()]
    return found


@pytest.mark.parametrize(
    ("change", "beside"),
    [
        ({"background": "blue"}, {}),
        ({"bucket_step": 16}, {"buckets": "aspect"}),
        ({"bucket_ratio": 1.2}, {"buckets": "aspect"}),
        ({"crop": "none"}, {}),
        ({"crop_variants": 1}, {"crop": "random"}),
        ({"mask_floor": 0.5}, {"masks": "alpha"}),
        ({"masks": "files"}, {}),
        ({"captions": "none"}, {}),
        ({"filename_drop_number": True}, {}),
        ({"filename_words": "[a-z]+"}, {}),
        ({"filename_join": "_"}, {"filename_words": "[a-z]+"}),
        ({"templates": "style_filewords"}, {"trigger": "anna"}),
        ({"trigger": "bert"}, {"templates": "style_filewords", "trigger": "anna"}),
        ({"caption_suffix": ", flat"}, {}),
        ({"append": [", flat", ""]}, {}),
        ({"append": {", flat": 9, "": 1}}, {"append": [", flat", ""]}),
        ({"shuffle_tags": True}, {}),
        ({"drop_tags": 0.5}, {}),
        ({"keep_tags": 2}, {"drop_tags": 0.9}),
        ({"tag_separator": ";"}, {"shuffle_tags": True}),
    ],
    ids=str,
)
def test_pictures_and_captions_follow_their_settings(odd_pictures: Path, change: dict, beside: dict) -> None:
    assert seen(odd_pictures, beside | change) != seen(odd_pictures, beside)


def test_several_captions_follow_their_settings(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {name}\na {name} icon\n")

    def told(folder: dict[str, Any] | None = None, **settings: Any) -> set[str]:
        data = as_mixture(
            [FolderConfig(path=str(tmp_path), **(folder or {}))],
            PictureSettings(**settings),
            size=32,
            downscale=4,
            multiple=8,
            seed=0,
        )
        found = {data.caption(0, epoch) for epoch in range(60)}
        assert found == set(data.variants(0))
        return found

    assert told() == {"a cat a cat icon"}
    assert told(caption_lines=True) == {"a cat", "a cat icon"}
    assert told(caption_lines=True, first_caption=1) == {"a cat"}
    assert told(append=["!", "?"]) == {"a cat a cat icon!", "a cat a cat icon?"}
    assert told({"append": [" by a"]}, append=["!"], caption_suffix=".") == {"a cat a cat icon by a."}
    assert told({"append": [""]}, append=["!"]) == {"a cat a cat icon"}


@pytest.mark.parametrize("kind", [FolderConfig, PictureSettings])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (", flat", "append is ', flat'; expected a list of texts"),
        ([3], "append has 3; expected a text"),
        ({", flat": -1}, "append gives ', flat' the weight -1; expected a number above 0"),
    ],
    ids=str,
)
def test_words_to_append_are_checked(kind: type[FolderConfig], wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(path="x", append=wrong) if kind is FolderConfig else kind(append=wrong)


@pytest.mark.parametrize("kind", [HypernetworkConfig, GeneratorConfig])
def test_the_loop_has_its_share(kind: type[HypernetworkConfig] | type[GeneratorConfig]) -> None:
    given = {
        "keep_checkpoints": 7,
        "on_divergence": "stop",
        "channels_last": True,
        "gradient_accumulation": 4,
    }
    loop = kind(max_steps=9, **given).trainer(10)
    assert loop.steps == 9
    assert {name: getattr(loop, name) for name in given} == given
    usual = kind().trainer(10)
    assert not any(getattr(usual, name) == value for name, value in given.items())


@pytest.mark.parametrize(
    "change",
    [
        {"activate_output": True},
        {"weight_init": "XavierNormal"},
        {"dropout_structure": [0.0, 0.3, 0.0]},
        {"layer_norm": True},
        {"layer_structure": [1, 1]},
        {"activation": "tanh"},
    ],
    ids=str,
)
def test_the_network_follows_its_settings(emoji: LatentDiffusion, change: dict) -> None:
    def output(**network: Any) -> torch.Tensor:
        config = HypernetworkRun.of(name="x", data="y", network={"weight_init": "Normal"} | network)
        made, _ = open_network(config, emoji)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(30)  # the webui's Normal is too small to be seen here
            made.train()
            torch.manual_seed(1)
            keys: torch.Tensor = made.transform(torch.randn(1, 5, 128))[0]
        return keys

    assert not torch.equal(output(), output(**change))


def test_networks_of_widths_or_sites(emoji: LatentDiffusion) -> None:
    for per_site in (False, True):
        made, _ = open_network(HypernetworkRun.of(name="x", data="y", network={"per_site": per_site}), emoji)
        assert bool(made.sites) == per_site
        assert bool(made.widths) != per_site


@pytest.mark.parametrize(
    "change",
    [
        {"output": "basis"},
        {"output": "core"},
        {"output": "lightweight"},
        {"init": "hyperfan-in"},
        {"trunk": "mlp"},
        {"depth": 2},
        {"heads": 2},
        {"iterations": 2},
        {"encoder_depth": 0},
        {"patch_size": 2},
        {"rank": 2},
        {"embedding_dim": 64},
        {"hidden_dim": 64},
        {"target_layers": ["to_k"]},
    ],
    ids=str,
)
def test_the_generator_follows_its_settings(emoji: LatentDiffusion, change: dict) -> None:
    def latents_and_shapes(**network: Any) -> tuple[list[Any], torch.Tensor]:
        small = {"embedding_dim": 32, "hidden_dim": 32, "depth": 1, "heads": 4, "target_layers": ["attn2"]}
        settings = GeneratorNetwork(**(small | network)).model_dump()
        torch.manual_seed(0)
        net = hb.Hypernetwork(target=hb.TargetNetwork(emoji), **settings)
        parts = [(name, tuple(p.shape)) for name, p in net.named_parameters()]
        torch.manual_seed(1)
        with torch.no_grad():
            weights = net.generate_weights(hb.ImageCondition(latents=torch.randn(2, 4, 16, 16)))
            tokens, mask = net.encoder([hb.ImageCondition(latents=torch.randn(1, 2, 4, 16, 16))], None)
            made = net.weight_generator(tokens, mask).flatten()
        return [*parts, *weights.ranks.items()], torch.cat(
            [made, *(f.down.flatten() for f in weights.factors.values())]
        )

    (shapes, base), (others, changed) = latents_and_shapes(), latents_and_shapes(**change)
    assert shapes != others or not torch.equal(base, changed)


def test_compile_and_channels_last_reach_the_unet(emoji: LatentDiffusion, tmp_path: Path) -> None:
    """Compiled for as long as the training lasts; the graph itself is left to torch's own tests."""
    found: list[tuple[bool, bool]] = []

    def look(model: LatentDiffusion, batch: Any) -> torch.Tensor:
        weight = next(p for p in model.unet.parameters() if p.ndim == 4 and p.shape[2] > 1)
        compiled = model.unet._compiled_call_impl is not None
        found.append((compiled, weight.is_contiguous(memory_format=torch.channels_last)))
        return model.losses(batch).mean()

    torch.compiler.set_stance("force_eager")
    try:
        for number, on in enumerate((False, True)):
            own = LatentDiffusion.from_pretrained("emoji")
            network = hb.AttentionHypernetwork.for_unet(own.unet, layer_structure=(1, 1), name="t")
            settings = {
                "max_steps": 1,
                "batch_size": 2,
                "validation_share": 0,
                "compile": on,
                "channels_last": on,
            }
            trainer = hb.HypernetworkTrainer(network, settings, run=tmp_path / str(number), compute=look)
            trainer.train(own, style_folder() / "train")
            assert own.unet._compiled_call_impl is None
    finally:
        torch.compiler.set_stance("default")
    assert found == [(False, False), (True, True)]


def test_kinds_of_training_have_defaults_of_their_own_for_the_same_settings() -> None:
    assert [kind().batch_size for kind in (TrainerConfig, HypernetworkConfig, GeneratorConfig)] == [8, 16, 32]
    assert [kind().warmup_steps for kind in (OptimizerConfig, HypernetworkConfig, GeneratorConfig)] == [
        0,
        10,
        50,
    ]
    assert HypernetworkConfig(batch_size=3, schedule="linear").trainer(5) == TrainerConfig(
        steps=34,
        batch_size=3,
        optimizer=OptimizerConfig(schedule="linear", warmup_steps=10),
        ema_decay=0.98,
        validate_every=25,
        preview_every=100,
        checkpoint_every=100,
        log_every=5,
        keep_best=True,
        on_divergence="back_off",
    )
    with pytest.raises(ValueError, match="batch_size 3 cannot be split into gradient_accumulation 2"):
        GeneratorConfig(batch_size=3, gradient_accumulation=2)
