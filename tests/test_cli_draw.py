"""`hyperbrush generate` and `compare` as a person uses them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import hyperbrush as hb
from hyperbrush.cli import main
from hyperbrush.cli.options import SAMPLERS, complete_sampler
from hyperbrush.generation import read_infotext, settings_text
from hyperbrush.ldm.models import LatentDiffusion

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    unet = LatentDiffusion.from_pretrained("emoji").unet
    for seed, name in enumerate(("ink", "water")):
        torch.manual_seed(seed)
        hn = hb.AttentionHypernetwork.for_unet(unet, name=name, weight_init="KaimingNormal")
        hn.save(folder / f"{name}.pt")
    return folder


@pytest.fixture
def run(
    tmp_path: Path,
    networks: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """Run a command in a folder with a library; returns (status, stdout, stderr)."""
    from rich.console import Console

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("hyperbrush.cli.console.out", Console(highlight=False, soft_wrap=True))
    monkeypatch.setattr("hyperbrush.cli.console.err", Console(stderr=True, highlight=False, soft_wrap=True))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "hypernetworks").symlink_to(networks)

    def call(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        shown = capfd.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return call


def pixels(path: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_a_picture_and_the_same_once_more(run: Run) -> None:
    first = run(
        "generate", "cat (face:1.2) <hypernet:ink:0.5:end=0.6>", "--seed", 3, "--steps", 3, "--cfg", 3,
        "--negative", "dog", "--sampler", "euler_a", "--clip-skip", 2, "--width", 96, "--height", 32,
        "--out", "a.png",
    )  # fmt: skip
    assert first[:2] == (0, "a.png  seed 3\n")
    assert "ink: 28 of 28 projections reached" in first[2]
    again = run("generate", "--from", "a.png", "--out", "b.png")
    assert again[0] == 0, again[2]
    assert (pixels("a.png") == pixels("b.png")).all()
    assert settings_text("a.png") == settings_text("b.png")


def test_options_of_the_command_line_win(run: Run) -> None:
    run("generate", "cat face", "--seed", 3, "--steps", 3, "--cfg", 3, "--width", 96, "--out", "a.png")
    assert run("generate", "--from", "a.png", "--steps", 2, "--cfg", 4, "--out", "b.png")[0] == 0
    before, now = (read_infotext(settings_text(name)) for name in ("a.png", "b.png"))
    # 4 is the default, and given: it wins all the same.
    assert (now.steps, now.guidance_scale) == (2, 4)
    assert (now.prompt, now.seed, now.sampler, now.size) == ("cat face", 3, before.sampler, (64, 96))
    assert run("generate", "dog", "--from", "a.png", "--height", 32, "--out", "c.png")[0] == 0
    other = read_infotext(settings_text("c.png"))
    assert (other.prompt, other.size, other.seed) == ("dog", (32, 96), 3)


def webui_picture(path: str, text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)


def test_an_old_picture_of_the_webui(run: Run) -> None:
    base = "Steps: 3, Sampler: Euler, CFG scale: 4, Seed: 11, Size: 64x64, Model hash: 7460a6fa, Model: sd"
    webui_picture("old.png", f"cat face\n{base}, Hypernet: ink(6e6f2a4c), Hypernet strength: 0.7")
    status, _, notes = run("generate", "--from", "old.png", "--out", "a.png")
    assert status == 0, notes
    assert "the model is another than the picture's: emoji" in notes
    assert "ink is another file than the picture's" in notes
    assert "does not say RNG: CPU" in notes
    tag = ("cat face <hypernet:ink:0.7>", "--steps", 3, "--sampler", "Euler", "--seed", 11)
    assert run("generate", *tag, "--discretisation", "webui", "--out", "b.png")[0] == 0
    assert run("generate", *tag, "--out", "c.png")[0] == 0
    assert (pixels("a.png") == pixels("b.png")).all()
    assert (pixels("a.png") != pixels("c.png")).any()


def test_several_prompts_each_with_its_own_networks(run: Run) -> None:
    status, shown, _ = run(
        "generate", "cat face <hypernet:ink:0.5>", "cat face", "--seed", 3, "--steps", 2, "--out", "p.png"
    )
    assert (status, shown) == (0, "p-01.png  seed 3\np-02.png  seed 3\n")
    run("generate", "cat face", "--seed", 3, "--steps", 2, "--out", "alone.png")
    assert abs(pixels("p-02.png") - pixels("alone.png")).max() <= 1
    assert abs(pixels("p-01.png") - pixels("alone.png")).max() > 4
    run("generate", "cat face", "--seed", 2, "--count", 2, "--steps", 2, "--out", "n.png")
    assert abs(pixels("n-02.png") - pixels("alone.png")).max() <= 1


def test_missing_warn_and_another_folder(run: Run, networks: Path) -> None:
    status, _, notes = run("generate", "cat <hypernet:inc>", "--missing", "warn", "--steps", 1)
    assert status == 0
    assert "drawn without 'inc': unknown hypernetwork 'inc'; did you mean 'ink'" in notes
    status, _, notes = run(
        "generate", "cat <hypernet:ink>", "--steps", 1, "--hypernetworks", networks, "--seed", 1
    )
    assert status == 0, notes


def test_begins_from_a_picture(run: Run) -> None:
    Image.new("RGB", (64, 64), "red").save("red.png")
    common = ("generate", "cat face", "--seed", 1, "--steps", 5, "--image", "red.png")
    assert run(*common, "--image-strength", 0.2, "--out", "near.png")[0] == 0
    assert run(*common, "--image-strength", 0.8, "--out", "far.png")[0] == 0
    red = pixels("red.png")
    assert abs(pixels("near.png") - red).mean() < abs(pixels("far.png") - red).mean()
    assert run("generate", "--from", "near.png", "--image", "red.png", "--out", "again.png")[0] == 0
    assert (pixels("again.png") == pixels("near.png")).all()


def test_draws_a_part_of_a_picture(run: Run) -> None:
    Image.new("RGB", (64, 64), "red").save("red.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 32))
    mask.save("mask.png")
    common = ("--image", "red.png", "--mask", "mask.png")
    assert run("generate", "cat face", "--seed", 1, "--steps", 3, *common, "--out", "part.png")[0] == 0
    change = abs(pixels("part.png") - pixels("red.png"))
    assert change[36:].max() == 0
    assert change[:28].mean() > 10
    assert run("generate", "--from", "part.png", *common, "--out", "again.png") == (
        0,
        "again.png  seed 1\n",
        "",
    )
    assert (pixels("again.png") == pixels("part.png")).all()
    _, _, notes = run("generate", "--from", "part.png", "--image", "red.png", "--out", "whole.png")
    assert "not repeated from the picture's text: Mask blur; give its mask as --mask" in notes


def test_draws_the_masked_region_alone(run: Run) -> None:
    Image.new("RGB", (160, 100), "red").save("red.png")
    mask = Image.new("L", (160, 100))
    mask.paste(255, (100, 20, 120, 40))
    mask.save("mask.png")
    common = ("--image", "red.png", "--mask", "mask.png")
    asked = ("generate", "cat face", "--seed", 1, "--steps", 3, *common)
    assert run(*asked, "--mask-padding", 4, "--out", "part.png")[0] == 0
    change = abs(pixels("part.png") - pixels("red.png"))
    assert change.shape[:2] == (100, 160)
    assert change[24:36, 104:116].mean() > 10
    assert change[:, :98].max() == 0
    assert run("generate", "--from", "part.png", *common, "--out", "again.png")[0] == 0
    assert (pixels("again.png") == pixels("part.png")).all()
    _, _, notes = run("generate", "--from", "part.png", "--image", "red.png", "--out", "whole.png")
    assert "Mask blur, Inpaint area, Masked area padding; give its mask as --mask" in notes


def test_a_grid(run: Run) -> None:
    status, shown, notes = run(
        "compare", "cat face", "--x", "strength=0,0.5", "--y", "hypernet=ink,water", "--z", "cfg=1,4",
        "--seed", 2, "--steps", 2, "--side", 64, "--batch", 2, "--negative", "dog", "--out", "grid.png",
    )  # fmt: skip
    assert (status, shown) == (0, "grid.png  seed 2\n"), notes
    assert "water: 28 of 28 projections reached" in notes
    info = read_infotext(settings_text("grid.png"))
    assert (info.prompt, info.negative) == ("cat face", "dog")
    assert info.fields["Y Values"] == "ink,water"
    page = Image.open("grid.png")
    assert page.width > 128
    assert page.height > 4 * 64
    assert run("compare", "cat", "--x", "seed=1,2", "--steps", 1, "--out", "s.png")[1] == "s.png\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate"], "no prompt was given"),
        (["generate", "--from", "none.png"], "none.png does not exist"),
        (["generate", "--from", "bare.png"], "bare.png holds no settings"),
        (["generate", "--from", "empty.png"], "the settings in empty.png have no prompt"),
        (["generate", "--from", "odd.png"], "choose one with --sampler: unknown sampler 'DPM++ 2M SDE Heun'"),
        (["generate", "--from", "bad.png"], "'Steps' in the picture's text is 'many'"),
        (["generate", "cat", "--cfg", "nan"], "guidance_scale must be a number"),
        (["generate", "cat", "--width", "0", "--height", "64"], "a side of the picture must be"),
        (["generate", "cat", "--clip-skip", "0"], "clip_skip must be a whole number"),
        (["generate", "cat", "--missing", "ignore"], "unknown way with missing hypernetworks 'ignore'"),
        (["generate", "cat", "--image", "none.png"], "cannot read --image none.png"),
        (["generate", "cat", "--mask", "bare.png"], "--mask bare.png needs --image"),
        (["generate", "cat", "--image", "bare.png", "--mask-padding", "4"], "--mask-padding needs --mask"),
        (["generate", "cat", "--image", "bare.png", "--mask", "none.png"], "cannot read --mask none.png"),
        (["generate", "cat <hypernet:inc>"], "did you mean 'ink'"),
        (["generate", "cat", "--negative", "<hypernet:ink>"], "with a negative strength"),
        (["generate", "cat <hypernet:ink:1"], "is no tag, but nearly: write <hypernet:NAME:STRENGTH>"),
        (["generate", "cat &lt;hypernet:ink:1&gt;"], "is no tag, but nearly"),
        (["generate", "cat <lora:look:1>"], "no LoRA folder at models/loras"),
        (["generate", "cat", "--sampler", "DDIM Karras"], "'DDIM' has no noise schedule 'Karras'"),
        (["generate", "cat", "--image-strength", "0.3"], "--image-strength needs --image"),
        (
            ["generate", "--from", "odd.png", "--out", "odd.png"],
            "odd.png is read (--from) and would be replaced",
        ),
        (["generate", "cat", "--image", "bare.png", "--out", "bare.png"], "bare.png is read (--image)"),
        (["generate", "cat", "--out", "models"], "models is a folder: name a picture in it"),
        (["generate", "cat", "--out", "cat"], "'no suffix' is no picture format"),
        (["compare", "cat", "--x", "seed=1", "--out", "g.txt"], "'.txt' is no picture format"),
        (["compare", "cat <lora:look:1>", "--x", "seed=1", "--loras", "looks"], "no LoRA folder at looks"),
        (["compare", "cat", "--x", "steps=2,1001"], "steps must be"),
        (["compare", "cat", "--x", "size=64x64,60x64"], "size 60x64 is not possible"),
        (["compare", "cat", "--x", "sampler=Euler,Flow Euler"], "Flow Euler"),
        (["ldm", "sample", "cat", "--out", "sample"], "'no suffix' is no picture format"),
        (["ldm", "sample", "cat <hypernet:ink:1>"], "no tags are read here"),
        (["ldm", "sample", "cat", "--count", "9"], "--count is of pictures without prompts"),
        (["ldm", "sample", "cat", "--seed", "99999999999999999999"], "'--seed'"),
        (["compare", "cat"], "nothing is varied"),
        (["compare", "cat", "--x", "strength=0,1"], "nothing to act on"),
        (["compare", "cat", "--x", "strenth=0,1"], "did you mean 'strength'"),
        (["compare", "cat", "--x", "hypernet=inc"], "did you mean 'ink'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input_is_one_line_and_status_2(run: Run, words: list[str], message: str) -> None:
    Image.new("RGB", (8, 8)).save("bare.png")
    webui_picture("empty.png", "Steps: 3, Sampler: Euler, Seed: 1")
    webui_picture("odd.png", "cat\nSteps: 3, Sampler: DPM++ 2M SDE Heun, Seed: 1")
    webui_picture("bad.png", "cat\nSteps: many, Sampler: Euler, Seed: 1")
    status, shown, told = run(*words)
    assert (status, shown) == (2, "")
    assert message in told
    assert told.startswith("hyperbrush: ")
    assert told.count("\n") == 1
    assert not Path("picture.png").exists()
    assert not Path("grid.png").exists()


def test_old_pictures_with_editing_loras_and_renamed_networks(run: Run, networks: Path) -> None:
    from hyperbrush.generation.opened import file_hash

    base = "Steps: 2, Sampler: Euler, CFG scale: 4, Seed: 5, Size: 64x64, RNG: CPU"
    webui_picture("edited.png", f"a [dog:cat:.1] in the [desert:ocean:.1]\n{base}")
    webui_picture("words.png", f"a cat in the ocean\n{base}")
    for name in ("edited", "words"):  # a tenth of two steps is none
        assert run("generate", "--from", f"{name}.png", "--out", f"{name}-again.png")[0] == 0
    assert (pixels("edited-again.png") == pixels("words-again.png")).all()

    digest = file_hash(networks / "ink.pt")
    webui_picture(
        "civ.png", f'cat <lora:look:0.4> <hypernet:was:0.5>\n{base}, Hypernet hashes: "was: {digest}"'
    )
    assert run("generate", "--from", "civ.png")[0] == 2
    status, _, told = run("generate", "--from", "civ.png", "--missing", "warn", "--out", "civ-again.png")
    assert status == 0
    assert "drawn without the LoRA 'look': no LoRA folder at models/loras" in told
    assert "was is the file ink here: found by its hash" in told
    assert run("generate", "cat <hypernet:ink:0.5>", "--from", "civ.png", "--out", "plain.png")[0] == 0
    assert (pixels("civ-again.png") == pixels("plain.png")).all()


def test_what_is_drawn_is_kept_batch_by_batch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperbrush.generation import batches

    drawn = batches.draw_together

    def short(model: Any, batch: Any, *given: Any) -> Any:
        if batch[0].seed == 5:
            raise torch.OutOfMemoryError("out of memory")
        return drawn(model, batch, *given)

    monkeypatch.setattr(batches, "draw_together", short)
    words = ("generate", "cat", "--seed", 1, "--count", 6, "--steps", 1, "--batch", 2, "--out", "c.png")
    status, _, said = run(*words)
    assert (status, said.count("\n")) == (2, 1)
    assert "fewer at once (--batch)" in said
    assert sorted(path.name for path in Path().glob("c-*.png")) == [f"c-{i:02d}.png" for i in range(1, 5)]
    monkeypatch.setattr(batches, "draw_together", drawn)
    assert run("generate", "cat", "--seed", 3, "--steps", 1, "--out", "alone.png")[0] == 0
    assert abs(pixels("c-03.png") - pixels("alone.png")).max() <= 1


def test_one_side_follows_the_form_of_the_start_picture(run: Run) -> None:
    Image.new("RGB", (128, 64), "red").save("wide.png")
    for side, size in (("--width", (96, 48)), ("--height", (192, 96))):
        words = ("generate", "cat", "--image", "wide.png", side, 96, "--steps", 2, "--out", "a.png")
        assert run(*words)[0] == 0
        assert Image.open("a.png").size == size


def test_an_axis_keeps_its_direction(run: Run) -> None:
    assert run("compare", "cat", "--y", "seed=1-3", "--steps", 1, "--out", "y.png")[0] == 0
    assert read_infotext(settings_text("y.png")).fields["Y Values"] == "1,2,3"
    page = Image.open("y.png")
    assert page.height > 2 * page.width


def test_seeds_of_64_bits_are_drawn_and_repeated(run: Run) -> None:
    base = "Steps: 1, Sampler: Euler, CFG scale: 4, Seed: 18446744073709551615, Size: 64x64, RNG: CPU"
    webui_picture("comfy.png", f"cat\n{base}")
    assert run("generate", "--from", "comfy.png", "--out", "a.png")[1] == "a.png  seed 18446744073709551615\n"


def test_samplers_complete_without_torch() -> None:
    from hyperbrush.ldm.sampling.samplers import sampler_names

    assert list(SAMPLERS) == sampler_names()
    assert complete_sampler("eul") == ["Euler", "Euler a"]


def test_variations_and_a_second_pass_are_repeated_and_need_what_they_are_of(run: Run) -> None:
    near = ("--seed", 3, "--steps", 2, "--subseed", 9, "--subseed-strength", 0.3)
    assert (
        run("generate", "cat face", *near, "--hires-scale", 1.5, "--hires-steps", 1, "--out", "a.png")[0] == 0
    )
    assert Image.open("a.png").size == (96, 96)
    assert run("generate", "--from", "a.png", "--out", "b.png")[0] == 0
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()
    assert run("generate", "--from", "a.png", "--hires-upscaler", "Lanczos", "--out", "c.png")[0] == 0
    assert read_infotext(settings_text("c.png")).fields["Hires upscaler"] == "Lanczos"
    status, _, said = run("generate", "cat face", "--hires-steps", 3, "--out", "d.png")
    assert status == 2
    assert "--hires-steps needs --hires-scale" in said
    status, _, said = run("generate", "cat face", "--subseed", 3, "--out", "d.png")
    assert status == 2
    assert "without subseed_strength" in said
    assert not Path("d.png").exists()
