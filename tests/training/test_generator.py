"""Training a generator of weights on many styles, and using what it makes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

import hyperbrush as hb
from hyperbrush.assets import style_folder
from hyperbrush.cli import main
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import TunedWeights
from hyperbrush.hypernetworks.generator.generating import MOST, generate_adapter, open_generator
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training import Interrupted
from hyperbrush.training.attention.run import HypernetworkRun, train_run
from hyperbrush.training.generator.config import GeneratorConfig
from hyperbrush.training.generator.objective import generator_objective, style_losses
from hyperbrush.training.generator.run import GeneratorRun, configured_generator, train_generator
from hyperbrush.training.generator.styles import StyleBatches, _log_uniform, open_styles

COLOURS = {"ink": "black", "rust": "#a03010", "sea": "#104a90", "moss": "#30661a"}
SMALL = {"embedding_dim": 32, "hidden_dim": 32, "rank": 2, "depth": 1, "heads": 4}
SHORT = {
    "prompts": [],
    "max_steps": 4,
    "batch_size": 4,
    "pictures_per_style": 2,
    "shared_steps": 0,
    "references": 3,
    "validate_every": 2,
    "checkpoint_every": 2,
    "log_every": 1,
    "validation_pictures": 2,
}


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained("emoji")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four styles of eight pictures, each in one colour on another."""
    root = tmp_path_factory.mktemp("world")
    files = sorted((style_folder() / "train").glob("*.png"))
    for number, (name, colour) in enumerate(COLOURS.items()):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        (folder / "style.txt").write_text(f"{name} on white")
        for path in files[number * 8 : number * 8 + 8]:
            with Image.open(path) as picture:
                ImageOps.colorize(picture.convert("L"), colour, "white").save(folder / path.name)
    judged = root / "held_out" / "plum"
    for part, chosen in (("references", files[40:43]), ("targets", files[43:46])):
        (judged / part).mkdir(parents=True)
        for path in chosen:
            with Image.open(path) as picture:
                ImageOps.colorize(picture.convert("L"), "#702060", "white").save(judged / part / path.name)
    (root / "held_out" / "ash").symlink_to(root / "train" / "ink")
    return root


def objective(emoji: LatentDiffusion, world: Path, run: Path, **settings):
    torch.manual_seed(0)
    net = hb.Hypernetwork(["attn2"], target=hb.TargetNetwork(emoji), condition_dropout=0.0, **SMALL)
    config = GeneratorConfig(**(SHORT | settings))
    return generator_objective(emoji, net, config, world / "train", world / "held_out", run)


def run_of(world: Path, tmp_path: Path, **training) -> GeneratorRun:
    return GeneratorRun(
        name="maker",
        data=str(world / "train"),
        validation=str(world / "held_out"),
        generators=str(tmp_path / "generators"),
        network={"target_layers": ["attn2"], **SMALL},
        training=SHORT | training,
    )


def trained(emoji: LatentDiffusion, config: GeneratorRun, run: Path, **how) -> torch.Tensor:
    train_generator(config, run, model=emoji, overwrite=True, **how)
    net = hb.Hypernetwork.load(run / "maker.safetensors")
    return torch.cat([p.flatten() for p in net.parameters()])


@pytest.fixture(scope="module")
def unchanged(emoji: LatentDiffusion, world: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    folder = tmp_path_factory.mktemp("unchanged")
    return trained(emoji, run_of(world, folder), folder / "run")


def test_batches_never_show_a_target_and_are_functions_of_the_step(
    emoji, world: Path, tmp_path: Path
) -> None:
    styles = open_styles(world / "train", emoji, tmp_path)
    assert [style.name for style in styles] == sorted(COLOURS)
    assert styles[0].text == "ink on white"
    batches = StyleBatches(styles, 2, 5, 0.5, seed=3)
    sizes = set()
    for step in range(20):
        looked, rows = batches.draw(step, 6)
        assert len(rows) == 6
        assert [sample for sample, _, _ in rows] == [0, 1, 2, 0, 1, 2], "row i is of sample i mod samples"
        for sample, style, picture in rows:
            assert looked.styles[sample] == style
            target = styles[style].latents[picture]
            shown = looked.latents[sample][looked.present[sample]]
            assert not any(torch.equal(target, one) for one in shown)
        sizes |= set(looked.present.sum(1).tolist())
        again, _ = batches.draw(step, 6)
        assert torch.equal(again.latents, looked.latents)
        assert torch.equal(again.drop, looked.drop)
    assert {1, 5} <= sizes
    assert [_log_uniform(share, 16) for share in (0.0, 0.5, 0.999)] == [1, 4, 16]


def test_one_of_several_captions_is_told_each_time(emoji, world: Path, tmp_path: Path) -> None:
    styles, said = shutil.copytree(world / "train", tmp_path / "train"), {}
    for path in styles.glob("*/*.png"):
        said[path.stem] = {f"{path.stem} one", f"{path.stem} two"}
        row = {"file_name": path.name, "text": sorted(said[path.stem])}
        with (path.parent / "metadata.jsonl").open("a") as rows:
            rows.write(json.dumps(row) + "\n")
    shutil.copytree(world / "held_out", tmp_path / "held_out")
    made = objective(emoji, tmp_path, tmp_path / "run", condition_dropout=0.0)
    told = {caption for step in range(200) for caption in made.batch(step, 4)["captions"]}
    assert told == set().union(*said.values())
    assert made.batch(7, 4)["captions"] == made.batch(7, 4)["captions"]


def test_learns_what_all_share_and_then_the_rest(emoji, world: Path, tmp_path: Path) -> None:
    own = objective(emoji, world, tmp_path, shared_steps=2)
    shared = own.net.decoder.shared_parameters()
    rest = [p for p in own.net.parameters() if not any(p is s for s in shared)]

    def gradients(step: int) -> None:
        own.zero_grad()
        with torch.no_grad():
            for parameter in shared:
                parameter.add_(0.01)
        own(own.batch(step, 4))["loss"].backward()

    gradients(0)
    assert all(p.grad is not None and p.grad.any() for p in shared)
    assert all(p.grad is None for p in rest)
    gradients(2)
    assert all(p.grad is None for p in shared)
    assert any(p.grad is not None and p.grad.any() for p in rest)
    assert all(p.requires_grad for p in own.net.parameters())


def test_parts_of_a_batch_add_up(emoji, world: Path, tmp_path: Path) -> None:
    from hyperbrush.training.loop.objectives import rows

    own = objective(emoji, world, tmp_path)
    with torch.no_grad():
        for parameter in own.net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        batch = own.batch(0, 4)
        whole = own(batch)["loss"]
        parts = [own(rows(batch, i, i + 1, 4))["loss"] for i in range(4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-5},
        {"references": 1},
        {"text_share": 1.0},
        {"norm_weight": 1e3},
        {"pictures_per_style": 4},
        {"shared_steps": 3},
        {"shared_rate": 1.0},
        {"weighting": "min_snr"},
        {"seed": 1},
    ],
    ids=str,
)
def test_each_setting_makes_a_difference(
    emoji, world: Path, tmp_path: Path, unchanged: torch.Tensor, change: dict
) -> None:
    assert not torch.equal(unchanged, trained(emoji, run_of(world, tmp_path, **change), tmp_path / "run"))


def test_retaining_acts_on_the_null_condition(
    emoji, world: Path, tmp_path: Path, unchanged: torch.Tensor
) -> None:
    found = [
        trained(emoji, run_of(world, tmp_path, style_dropout=1.0, retain=weight), tmp_path / str(weight))
        for weight in (0.0, 1e3)
    ]
    assert not torch.equal(*found)
    assert not torch.equal(unchanged, found[0])


def test_resume_is_exact(emoji, world: Path, tmp_path: Path, unchanged: torch.Tensor) -> None:
    def train(run: Path, **how) -> torch.Tensor:
        return trained(emoji, run_of(world, tmp_path), run, **how)

    seen = []
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", on_progress=seen.append, should_stop=lambda: len(seen) >= 2)
    assert torch.equal(unchanged, train(tmp_path / "parts", resume=True))


def test_another_generator_is_gone_on_from(emoji, world: Path, tmp_path: Path) -> None:
    first = trained(emoji, run_of(world, tmp_path), tmp_path / "first")
    own = run_of(world, tmp_path, max_steps=1, learning_rate=1e-9, ema_decay=None)
    own.start_from, own.network = (
        str(tmp_path / "first/maker.safetensors"),
        GeneratorRun.model_fields["network"].default,
    )
    shutil.rmtree(tmp_path / "generators")
    second = trained(emoji, own, tmp_path / "second")
    steps = [
        hb.Hypernetwork.load(tmp_path / run / "maker.safetensors", emoji).step for run in ("first", "second")
    ]
    assert steps[1] == steps[0] + 1
    assert torch.allclose(first, second, atol=1e-6)  # one step at next to no rate
    assert not torch.equal(first, second)
    shutil.rmtree(tmp_path / "generators")
    own.training.learning_rate, own.training.max_steps = 1e-3, 3
    assert not torch.allclose(first, trained(emoji, own, tmp_path / "third"), atol=1e-4)
    with pytest.raises(UserError, match="start_from brings its own network"):
        configured_generator(name="x", data="y", start_from="z", settings=["rank=2"])


def test_reconstruction_of_finished_adapters(emoji, world: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "world"
    shutil.copytree(world / "train", root)
    with pytest.raises(UserError, match="no adapter to reconstruct"):
        open_styles(root, emoji, tmp_path / "cache", adapters=True)
    torch.manual_seed(1)
    maker = hb.Hypernetwork(["attn2"], target=hb.TargetNetwork(emoji), **SMALL)
    for parameter in maker.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    for folder in root.iterdir():
        condition = hb.ImageCondition([str(p) for p in sorted(folder.glob("*.png"))[:2]])
        with torch.no_grad():
            maker.generate_weights(condition).save(folder / "adapter.safetensors")
    losses = []
    for mode in ("reconstruction", "mixed"):
        config = run_of(world, tmp_path, objective=mode, max_steps=30, learning_rate=5e-3, validate_every=30)
        config.data = str(root)
        train_generator(config, tmp_path / mode, model=emoji, overwrite=True)
        rows = [json.loads(x) for x in (tmp_path / mode / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["reconstruction"] for row in rows if "reconstruction" in row])
        assert ("denoising" in rows[0]) == (mode == "mixed")
    assert losses[0][-1] < 0.9 * losses[0][0]


def test_validation_looks_at_held_out_styles(emoji, world: Path, tmp_path: Path) -> None:
    own = objective(emoji, world, tmp_path)
    own.eval()
    with torch.no_grad():
        first = own.validate()
        assert first["loss"] == pytest.approx(first["base"], rel=1e-6), "it begins by changing nothing"
        for parameter in own.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        later = own.validate()
    assert later["base"] == first["base"]
    assert later["loss"] != later["shuffled"]
    plum = next(style for style in own.held_out if style.name == "plum")
    assert (plum.references, len(plum)) == (3, 6)
    assert style_losses(own, plum, None).shape == (3, 4)


def test_previews_show_trained_styles_where_none_are_held_out(emoji, world: Path, tmp_path: Path) -> None:
    own = objective(emoji, world, tmp_path, prompts=["cat face"], preview_steps=1)
    own.held_out = None
    page = own.preview()
    assert page is not None
    side, styles = emoji.image_size, min(6, len(own.batches.styles))
    assert page.size == (3 * (side + 2) - 2, styles * (side + 2) - 2)


def test_wrong_styles_are_clear_errors(emoji, world: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected one folder of pictures for each style"):
        open_styles(tmp_path / "empty", emoji, tmp_path / "c")
    lone = tmp_path / "lone" / "style"
    lone.mkdir(parents=True)
    picture = next((world / "train/ink").glob("*.png"))
    (lone / picture.name).write_bytes(picture.read_bytes())
    with pytest.raises(UserError, match="has 1 picture; a style needs two"):
        open_styles(tmp_path / "lone", emoji, tmp_path / "c")
    with pytest.raises(UserError, match="cannot be cut into styles of 3"):
        objective(emoji, world, tmp_path, pictures_per_style=3)
    with pytest.raises(UserError, match="did you mean 'style_dropout'"):
        configured_generator(name="x", data="y", settings=["style_droput=1"])
    with pytest.raises(
        UserError, match="reconstruction_weight is of objective 'mixed', and it is 'denoising'"
    ):
        configured_generator(name="x", data="y", settings=["reconstruction_weight=1"])
    with pytest.raises(UserError, match="retain is of the null condition, which style_dropout 0 never shows"):
        configured_generator(name="x", data="y", settings=["retain=1", "style_dropout=0"])
    with pytest.raises(UserError, match="no generator ships"):
        open_generator(None, "elsewhere")


def test_the_command_line_from_styles_to_a_picture(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hyperbrush(*arguments: object, status: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        shown = capsys.readouterr()
        assert stop.value.code == status, shown.err
        return shown.out + shown.err

    monkeypatch.chdir(tmp_path)
    settings = [
        f"-s{key}={value}"
        for key, value in (SMALL | SHORT | {"max_steps": 2, "text_share": 0.5}).items()
        if key != "prompts"
    ]
    said = hyperbrush(
        *("hyper", "train", "--data", world / "train", "--validation", world / "held_out", "--name", "maker"),
        *("--prompt", "cat face", "-s", "preview_every=2", "-s", "preview_steps=2", *settings),
    )
    assert "models/generators/maker.safetensors" in said
    assert Path("runs/maker/previews/step-00000002.png").is_file()
    assert Path("runs/maker/report.html").is_file()
    pictures = sorted((world / "held_out/plum/references").glob("*.png"))
    generator = ("--generator", "models/generators/maker.safetensors")
    said = hyperbrush("hyper", "generate", *generator, "--images", *pictures, "--out", "style.safetensors")
    assert "rank 2" in said
    one = hb.load("style.safetensors")
    assert isinstance(one, hb.GeneratedWeights)
    hyperbrush(
        "hyper", "generate", *generator, "--text", "plum on white", "--rank", 4, "--out", "words.safetensors"
    )
    assert hb.load("words.safetensors").rank == 4
    hyperbrush(
        "hyper",
        "generate",
        *generator,
        "--images",
        pictures[0],
        "--format",
        "lora-kohya",
        "--out",
        "k.safetensors",
    )
    hyperbrush(
        "convert",
        "style.safetensors",
        "again.safetensors",
        "--to",
        "lora-kohya",
        "--strength",
        0.5,
        "--rank",
        1,
    )
    assert hb.GeneratedWeights.load("again.safetensors").rank == 1
    assert "cannot hold them" in hyperbrush("convert", "style.safetensors", "style.pt", status=2)
    facts = json.loads(hyperbrush("inspect", "style.safetensors", "--json"))
    assert (facts["kind"], facts["rank"], facts["layers"]) == ("generated", 2, len(one.layers))
    assert "Norm of each layer's change" in hyperbrush("inspect", "style.safetensors")
    said = hyperbrush("demo", "--hyper", *generator, "--steps", 2, "--out", "demo")
    assert Path("demo/hyper-grid.png").is_file()
    assert "ink-tuned.safetensors: the same after" in said
    said = hyperbrush(
        *("generate", "cat face <hypernet:style:0.8>", "--hypernetworks", ".", "--steps", 2, "--seed", 1),
        *("--out", "cat.png"),
    )
    assert Path("cat.png").is_file()
    assert "hyper generate" not in hyperbrush("hyper", "generate", *generator, status=2)


def test_tuning_goes_on_from_generated_weights(emoji, world: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = hb.Hypernetwork(["attn2"], target=hb.TargetNetwork(emoji), **SMALL)
    for parameter in net.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    pictures = sorted((world / "train/sea").glob("*.png"))
    weights = generate_adapter(net, pictures=pictures[:3], name="sea")
    weights.save(tmp_path / "sea.safetensors")
    with pytest.raises(UserError, match=f"{MOST} at most"):
        generate_adapter(net, pictures=[pictures[0]] * (MOST + 1))
    tuned = TunedWeights(weights.expand_rank(6))
    torch.testing.assert_close(tuned.weights.delta(), weights.delta(), atol=1e-6, rtol=1e-4)
    config = HypernetworkRun.of(
        name="sea-tuned",
        data=str(world / "train/sea"),
        start_from=str(tmp_path / "sea.safetensors"),
        tune_rank=6,
        hypernetworks=str(tmp_path / "library"),
        training={
            "max_steps": 6,
            "batch_size": 4,
            "validate_every": 3,
            "learning_rate": 3e-3,
            "validation_share": 0,
        },
    )
    result = train_run(config, tmp_path / "run", model=emoji)
    made = hb.load(result.file)
    assert isinstance(made, hb.GeneratedWeights)
    assert made.rank == 6
    assert not torch.equal(made.factors[made.layers[0]].up, tuned.weights.factors[made.layers[0]].up)
    assert made.metadata["sd_checkpoint_name"] == "emoji"
    assert not any(m._forward_hooks for m in emoji.unet.modules())


def test_so_many_held_out_styles_are_judged(emoji, world: Path, tmp_path: Path) -> None:
    bases = []
    for count in (1, 2):
        own = objective(emoji, world, tmp_path, validation_styles=count)
        own.eval()
        with torch.no_grad():
            bases.append(own.validate()["base"])
    assert bases[0] != bases[1]


def test_reconstruction_counts_by_its_weight(emoji, world: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    terms = []
    for weight in (0.1, 0.4):
        own = objective(emoji, world, tmp_path)
        with torch.no_grad():
            for parameter in own.net.parameters():
                parameter.add_(
                    0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
                )
            adapter = generate_adapter(own.net, pictures=sorted((world / "train/sea").glob("*.png"))[:2])
        styles = [replace(style, adapter=adapter) for style in own.batches.styles]
        own.batches = replace(own.batches, styles=styles)
        own.config = own.config.model_copy(update={"objective": "mixed", "reconstruction_weight": weight})
        with torch.no_grad():
            terms.append({name: float(term) for name, term in own(own.batch(0, 4)).items()})
    assert terms[1]["reconstruction"] == pytest.approx(4 * terms[0]["reconstruction"], rel=1e-4)
    assert terms[1]["denoising"] == pytest.approx(terms[0]["denoising"], rel=1e-5)


def test_words_are_for_generators_that_learned_from_some(emoji, world: Path, tmp_path: Path) -> None:
    config = run_of(world, tmp_path, max_steps=2)
    file = train_generator(config, tmp_path / "run", model=emoji).file
    net = hb.Hypernetwork.load(file, emoji)
    assert net.learned == ("pictures",)
    with pytest.raises(UserError, match="trained on pictures alone"):
        generate_adapter(net, text="plum on white")
    with pytest.raises(UserError, match="trained on pictures alone"):
        net.generate_weights(["plum on white", "ash"])


def test_one_held_out_style_has_no_other(emoji, world: Path, tmp_path: Path) -> None:
    found = objective(emoji, world, tmp_path)
    assert set(found.validate()) == {"loss", "shuffled", "base"}
    found.held_out = found.held_out[:1]
    assert set(found.validate()) == {"loss", "base"}
    found.close()


def test_noise_comes_from_the_range_that_is_asked_for(emoji, world: Path, tmp_path: Path) -> None:
    found = objective(emoji, world, tmp_path, timestep_range=(0.5, 0.6))
    steps = torch.cat([found.batch(step, found.config.batch_size)["timesteps"] for step in range(4)])
    assert (int(steps.min()) >= 500, int(steps.max()) < 600) == (True, True)
    found.close()
    with pytest.raises(UserError, match="compile: a generator's weights are put onto the UNet anew"):
        objective(emoji, world, tmp_path, compile=True)


def test_a_broken_picture_is_left_out_and_changes_are_told(
    emoji, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    styles = tmp_path / "styles"
    shutil.copytree(world / "train", styles)
    first = next(path for path in sorted(styles.iterdir()) if path.is_dir())
    (first / "broken.png").write_bytes(b"\x89PNG no picture")
    opened = open_styles(styles, emoji, tmp_path / "cache")
    assert f"style {first.name!r}: 1 files are left out" in caplog.text
    assert "broken.png" in caplog.text
    assert not any(Path(path).name == "broken.png" for style in opened for path in style.paths)
    found = objective(emoji, world, tmp_path)
    trained_on, held_out = found.picture_paths()
    assert len(trained_on) == sum(map(len, found.batches.styles))
    assert len(held_out) == sum(map(len, found.held_out))
    found.close()


def test_two_processes_learn_what_one_learns(world: Path, tmp_path: Path) -> None:
    losses = []
    for count in (1, 2):
        run, library = tmp_path / f"run{count}", tmp_path / f"library{count}"
        words = ["--data", world / "train", "--name", "g", "--steps", 2, "--batch-size", 4, "--run", run]
        words += [
            "--processes",
            count,
            "-s",
            f"generators={library}",
            "-s",
            "prompts=[]",
            "-s",
            "log_every=1",
        ]
        for name, value in {**SMALL, "shared_steps": 0, "references": 2, "pictures_per_style": 2}.items():
            words += ["-s", f"{name}={value}"]
        done = subprocess.run(
            [sys.executable, "-m", "hyperbrush", "hyper", "train", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert (library / "g.safetensors").is_file()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
