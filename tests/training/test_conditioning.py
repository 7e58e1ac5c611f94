"""Models told classes, pictures or nothing: trained from YAML, resumed, saved, sampled, judged, and hypernetworks on them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hyperbrush.cli import main
from hyperbrush.commands.doctor import examine
from hyperbrush.commands.evaluation import evaluate_folder
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.modules.attention_sites import attention_sites
from hyperbrush.training import HypernetworkTrainer, Trainer
from hyperbrush.training.attention.run import HypernetworkRun, train_run
from hyperbrush.training.ldm.run import build, read_config
from hyperbrush.training.loop.objectives import trained_tensors

KINDS = ("class", "none", "image")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pictures/{circle,square}/N.png, two held out of each in held/, lines/ of the same names, a first stage."""
    from hyperbrush.ldm.models import first_stage

    root = tmp_path_factory.mktemp("world")
    noise = np.random.default_rng(0)
    for number in range(12):
        for side, kind in enumerate(("circle", "square")):
            pixels = noise.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[4 + number : 16 + number, 6:20, side] = 255
            folder = "held" if number > 9 else "pictures"
            for where, shown in ((folder, pixels), ("lines", 255 - pixels)):
                (root / where / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(shown).save(root / where / kind / f"{number}.png")
    torch.manual_seed(0)
    first_stage("kl", channels=[8, 16], sample_size=32).save_pretrained(root / "stage")  # type: ignore[operator]
    return root


def values(world: Path, kind: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": "diffusion",
        "conditioning": kind,
        "first_stage": str(world / "stage"),
        "data": {
            "size": 32,
            "flip": 0.5,
            "folders": [str(world / "pictures")],
            "held_out": [str(world / "held")],
        },
        "unet": {
            "channels": [32, 64],
            "attention_resolutions": [8],
            "num_heads": 4,
            "layers_per_block": 1,
        },
        "training": {
            "steps": 3,
            "batch_size": 2,
            "checkpoint_every": 1,
            "validate_every": 3,
            "preview_every": 3,
            "ema_decay": 0.9,
        },
    } | more


def weights(objective: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained_tensors(objective).values()])


def train(config: Any, run: Path, **how: Any) -> torch.Tensor:
    objective = build(config, run, resume=how.get("resume", False))
    Trainer(objective, config.training, run).train(**how)
    return weights(objective)


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a kind of conditioning."""
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "run"
            made[kind].mkdir()
            train(read_config(values(world, kind)), made[kind])
        return made[kind]

    return run


def cli(command: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(command.split())
    return int(end.value.code or 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_in_a_folder_that_opens_again(kind: str, trained: Callable[[str], Path]) -> None:
    run = trained(kind)
    assert (run / "previews" / "step-00000003.png").is_file()
    assert "validation_loss" in (run / "metrics.jsonl").read_text()
    model = LatentDiffusion.from_pretrained(run / "model")
    assert model.conditioning == kind
    assert model.text_encoder is None
    about = json.loads((run / "model" / "hyperbrush.json").read_text())
    assert about.get("classes") == (["circle", "square"] if kind == "class" else None)
    assert "words" not in about
    assert model.unet.config.in_channels == (7 if kind == "image" else 4)


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_is_exact(kind: str, world: Path, trained: Callable[[str], Path], tmp_path: Path) -> None:
    config, short = read_config(values(world, kind)), read_config(values(world, kind))
    config.training.preview_every = short.training.preview_every = 100
    whole = train(config, tmp_path / "whole")
    short.training.steps = 1
    train(short, tmp_path / "cut")
    assert torch.equal(train(config, tmp_path / "cut", resume=True), whole)


def test_what_a_batch_is_told(world: Path, tmp_path: Path) -> None:
    batch = build(read_config(values(world, "class")), tmp_path / "class").batch(0, 2)
    own = [["circle", "square"].index(Path(path).parent.name) for path in batch["paths"]]
    assert batch["class_labels"].tolist() == own
    # Captions as classes.
    (tmp_path / "captioned").mkdir()
    for number, name in enumerate(("cat", "dog", "cat")):
        Image.new("RGB", (32, 32), (number * 40, 0, 0)).save(tmp_path / "captioned" / f"{number}.png")
        (tmp_path / "captioned" / f"{number}.txt").write_text(name)
    data = {"size": 32, "folders": [str(tmp_path / "captioned")], "classes": "captions"}
    objective = build(read_config(values(world, "class", data=data)), tmp_path / "captions")
    assert objective.model.class_names == ["cat", "dog"]
    # Pictures: the small one, mirrored with it; or another of its name.
    config = read_config(values(world, "image"))
    objective = build(config, tmp_path / "image")
    batch = objective.batch(3, 4)
    shown = [
        ImageFolder(world / "pictures", size=32, flip=0.5, seed=config.training.seed).example(i, epoch)[
            "image"
        ]
        for epoch, i in objective.order.pairs(3)
    ]
    small = torch.nn.functional.avg_pool2d(torch.stack(shown), 2)
    torch.testing.assert_close(batch["condition_images"], small)
    data = values(world, "image")["data"] | {"condition_folder": str(world / "lines")}
    other = build(read_config(values(world, "image", data=data)), tmp_path / "lines").batch(3, 4)
    torch.testing.assert_close(other["condition_images"], -small, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": {"width": 64}}, "conditioning 'class' reads no text"),
        ({"conditioning": "none", "prompts": ["cat"]}, "conditioning 'none' reads no prompts"),
        ({"conditioning": "label"}, "'text', 'none', 'class' or 'image'"),
        ({"start_from": "emoji", "first_stage": "", "unet": {}}, "brings its own conditioning"),
        ({"data": {"folders": ["x"], "condition_folder": "y"}}, "is for conditioning 'image'"),
        (
            {"conditioning": "none", "data": {"folders": ["x"], "classes": "captions"}},
            "is for conditioning 'class'",
        ),
        ({"process": {"schedule": [0.1, 1.5]}}, "beta 1 of the noise schedule is 1.5"),
        ({"process": {"schedule": "cosinus"}}, "cosinus"),
    ],
)
def test_configs_that_contradict_themselves(change: dict[str, Any], message: str, world: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_config(values(world, "class", **change))


def test_classes_that_are_not_there(world: Path, trained: Callable[[str], Path], tmp_path: Path) -> None:
    alone = values(world, "class")
    alone["data"] = {"size": 32, "folders": [str(world / "pictures" / "circle")]}
    with pytest.raises(
        UserError, match=r"all pictures are of one class, 'circle': expected folders within it"
    ):
        build(read_config(alone), tmp_path / "alone")
    (tmp_path / "new" / "star").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "new" / "star" / "1.png")
    strange = values(world, "class")
    strange["data"]["held_out"] = [str(tmp_path / "new")]
    with pytest.raises(UserError, match="classes star, which the model does not have; it has circle, square"):
        build(read_config(strange), tmp_path / "strange")
    onward = {
        "kind": "diffusion",
        "start_from": str(trained("class") / "model"),
        "training": {"steps": 1, "batch_size": 2},
    }
    with pytest.raises(UserError, match="classes star"):
        build(
            read_config(onward | {"data": {"size": 32, "folders": [str(tmp_path / "new")]}}), tmp_path / "o"
        )
    good = build(
        read_config(onward | {"data": {"size": 32, "folders": [str(world / "held")]}}), tmp_path / "good"
    )
    assert good.batch(0, 2)["class_labels"].shape == (2,)
    from hyperbrush.ldm.data import PictureRows
    from hyperbrush.training.data.conditioned import conditioned

    told = LatentDiffusion.from_pretrained(trained("image") / "model")
    rows = PictureRows([{"image": Image.new("RGB", (32, 32)), "text": "a"}] * 2, size=32)
    with pytest.raises(UserError, match="condition_folder is for folders of pictures, .* is a PictureRows"):
        conditioned(told, rows, rows, condition_folder=world / "lines")
    assert conditioned(told, rows, rows).example(0, 0)["condition_image"].shape == (3, 16, 16)
    lines = {"size": 32, "folders": [str(world / "pictures")], "condition_folder": str(world / "held")}
    with pytest.raises(UserError, match="20 of 20 pictures in .* have none of their name"):
        build(read_config(values(world, "image", data=lines)), tmp_path / "lines")


def test_sampled_from_the_command_line(
    world: Path, trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def drawn(kind: str, how: str) -> bytes:
        out = tmp_path / "out.png"
        out.unlink(missing_ok=True)
        assert (
            cli(f"ldm sample --model {trained(kind) / 'model'} --steps 2 --count 1 --out {out} {how}") == 0
        ), how
        return out.read_bytes()

    assert drawn("class", "--class circle") == drawn("class", "--class 0") != drawn("class", "--class square")
    assert Image.open(tmp_path / "out.png").size == (32, 32)
    one, two = (world / "held" / kind / "11.png" for kind in ("circle", "square"))
    assert drawn("image", f"--image {one}") != drawn("image", f"--image {two}")
    drawn("none", "")
    capsys.readouterr()
    for kind, how, message in (
        ("class", "--class star", "unknown class 'star'"),
        ("class", "cat", "conditioned by 'class' and reads no prompts: give classes"),
        ("none", "--class circle", "conditioned by 'none' and reads no classes: leave them out"),
        ("image", "", "this model is told of a picture: give one"),
        ("class", "--strength 0.5", "give --hypernetwork FILE"),
    ):
        assert cli(f"ldm sample --model {trained(kind) / 'model'} --out {tmp_path / 'no.png'} {how}") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no.png").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_judged_and_examined(kind: str, world: Path, trained: Callable[[str], Path], tmp_path: Path) -> None:
    folder = trained(kind) / "model"
    model = LatentDiffusion.from_pretrained(folder)
    torch.manual_seed(0)
    network = AttentionHypernetwork.for_unet(model.unet, weight_init="XavierNormal", name="ink")
    file = network.save(tmp_path / "ink.safetensors")
    lines = list(evaluate_folder(world / "held", model=str(folder), hypernetwork=str(file)))
    assert "denoising loss with ink" in lines[-1]
    assert not examine(model, [file], prompts=["a", "b"], steps=2, pairs=1).wrong


@pytest.mark.parametrize("kind", KINDS)
def test_hypernetworks_act_on_self_attention_alone(
    kind: str, world: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = trained(kind) / "model"
    config = HypernetworkRun.of(
        name="ink",
        model=str(folder),
        data=[str(world / "pictures")],
        validation=[str(world / "held")],
        hypernetworks=str(tmp_path / "library"),
        training={
            "max_steps": 2,
            "batch_size": 2,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "validate_every": 1,
            "preview_every": 2,
            "preview_steps": 1,
            "ema_decay": None,
        },
    )
    result = train_run(config, tmp_path / "run")
    assert list((tmp_path / "run" / "previews").rglob("*.png"))
    assert f"ldm sample {'--class' if kind == 'class' else ''}" in result.command()
    model = LatentDiffusion.from_pretrained(folder)
    assert {site.kind for site in attention_sites(model.unet)} == {"attn1"}
    from hyperbrush.hypernetworks import load

    network = load(result.file)
    told: dict[str, Any] = {
        "class": {"class_labels": ["circle", 1]},
        "none": {"count": 2},
        "image": {"condition_images": torch.zeros(2, 3, 16, 16)},
    }[kind]
    bare = model.sample(**told, steps=2, output="latents")
    with attach(model, network) as attached:
        assert all("attn1" in site.path for site in attached.applied.sites)
        assert not torch.equal(model.sample(**told, steps=2, output="latents"), bare)
    with pytest.raises(UserError, match=r"told no text, .* expected attn1"):
        attention_sites(model.unet, ("attn2",))
    settings = {"target_layers": ["attn2"], "max_steps": 1, "batch_size": 2}
    with pytest.raises(UserError, match=r"told no text"):
        HypernetworkTrainer(network, settings, run=tmp_path / "no").objective(model, world / "pictures")
    settings = {"prompts": ["star"], "max_steps": 1, "batch_size": 2}
    with pytest.raises(
        UserError, match="unknown class 'star'" if kind == "class" else "which reads none: leave them out"
    ):
        HypernetworkTrainer(network, settings, run=tmp_path / "early").objective(model, world / "pictures")
    if kind != "class":
        settings = {"classes": "captions", "max_steps": 1, "batch_size": 2}
        with pytest.raises(UserError, match=f"classes is for models conditioned by classes, .* by '{kind}'"):
            HypernetworkTrainer(network, settings, run=tmp_path / "early").objective(
                model, world / "pictures"
            )
    assert not (tmp_path / "early").exists(), "said before anything is encoded"
    out = tmp_path / "s.png"
    how = f"--image {world / 'held' / 'circle' / '11.png'}" if kind == "image" else ""
    assert (
        cli(f"ldm sample --model {folder} --hypernetwork {result.file} --steps 1 --count 1 --out {out} {how}")
        == 0
    )


def test_a_class_run_from_yaml_by_command(world: Path, tmp_path: Path) -> None:
    config = tmp_path / "shapes.yaml"
    config.write_text(
        yaml.safe_dump(values(world, "class", prompts=["square"]) | {"process": {"condition_dropout": 0.2}})
    )
    assert cli(f"ldm train {config} --run {tmp_path / 'run'} --steps 1") == 0
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == {"classes": ["circle", "square"]}
    assert cli(f"ldm train --resume {tmp_path / 'run'} --steps 2") == 0


def test_dropout_and_betas(world: Path, tmp_path: Path) -> None:
    betas = torch.linspace(1e-4, 0.05, 50).tolist()
    more: dict[str, Any] = {"process": {"schedule": betas}}
    config = values(world, "none", **more)
    config["unet"] |= {"dropout": 0.5}
    plain = build(read_config(values(world, "none", **more)), tmp_path / "plain")
    objective = build(read_config(config), tmp_path / "dropped")
    batch = objective.batch(0, 2)
    assert int(batch["timesteps"].max()) < 50
    assert torch.equal(weights(objective), weights(plain))
    for one, differs in ((objective, True), (plain, False)):
        one.train()
        first, second = (one(batch)["loss"].item() for _ in range(2))
        assert (first != second) == differs
    objective.eval()
    plain.eval()
    assert objective(batch)["loss"].item() == plain(batch)["loss"].item()
    objective.model.save_pretrained(tmp_path / "model")
    again = LatentDiffusion.from_pretrained(tmp_path / "model")
    assert len(again.diffusion.schedule) == 50
    expected = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)
    torch.testing.assert_close(again.diffusion.schedule.alphas_cumprod.double(), expected, rtol=1e-6, atol=0)
    assert again.sample(count=1, steps=4).isfinite().all()


def test_schedules_as_functions(make_tiny: Callable[..., LatentDiffusion]) -> None:
    import math

    model = make_tiny(
        conditioning="none", schedule=lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    )
    named = make_tiny(conditioning="none", schedule="cosine")
    torch.testing.assert_close(
        model.diffusion.schedule.alphas_cumprod, named.diffusion.schedule.alphas_cumprod, rtol=1e-4, atol=1e-6
    )
    with pytest.raises(UserError, match="must fall from step to step"):
        make_tiny(conditioning="none", schedule=lambda t: t)
    labelled = make_tiny(conditioning="class", class_names=["cat", "dog"])
    assert torch.equal(
        labelled.sample(class_labels=["dog"], steps=1),
        labelled.sample(class_labels=torch.tensor([1]), steps=1),
    )
    for wrong in (["cat", "cat"], [], ["cat", ""]):
        with pytest.raises(UserError, match="class names must differ"):
            make_tiny(conditioning="class", class_names=wrong)
    with pytest.raises(UserError, match="2 class_names for conditioning='class' with 3 classes"):
        make_tiny(conditioning="class", class_names=["cat", "dog"], num_classes=3)
