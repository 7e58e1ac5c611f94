"""Comparisons: each cell is the picture `generate` makes of its settings; the page says what was varied."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.generation import batches, compare, comparison, generate, read_infotext, settings_text
from hyperbrush.ldm.models import LatentDiffusion


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained("emoji")


@pytest.fixture(scope="module")
def library(emoji: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    for seed, name in enumerate(("ink", "water")):
        torch.manual_seed(seed)
        hn = hb.AttentionHypernetwork.for_unet(emoji.unet, name=name, weight_init="KaimingNormal")
        hn.save(folder / f"{name}.pt")
    return folder


def far(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one.image).astype(int) - np.asarray(other.image).astype(int)).max())


def test_each_cell_is_what_generate_draws(emoji: LatentDiffusion, library: Path) -> None:
    told: list[tuple[float, int]] = []
    settings: dict[str, Any] = {"model": emoji, "steps": 2, "hypernetworks": library}
    grid = compare(
        "cat face",
        ("strength", [0, 0.5]),
        "hypernet=ink,none",
        ("seed", [3, 4]),
        **settings,
        batch=3,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert sorted(grid.pictures) == [(z, y, x) for z in range(2) for y in range(2) for x in range(2)]
    for (z, y, x), picture in grid.pictures.items():
        tag = ["", " <hypernet:ink:0.5>"][x] if y == 0 else ""
        [alone] = generate(f"cat face{tag}", seed=3 + z, **settings)
        assert far(picture, alone) <= 1
        assert picture.seed == 3 + z
    assert far(grid.pictures[0, 0, 0], grid.pictures[0, 0, 1]) > 4
    # `none` is the same picture at every strength: drawn once.
    assert grid.pictures[0, 1, 0] is grid.pictures[0, 1, 1]
    assert told[-1] == (6, 6)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize(
    "axis",
    ["prompt=cat,dog", "cfg=1,4", "steps=1,3", "sampler=Euler,Euler a", "clip_skip=1,2", "size=64x64,96x32"],
)
def test_every_kind_of_axis_changes_the_picture(emoji: LatentDiffusion, axis: str) -> None:
    grid = compare("cat face", axis, model=emoji, seed=1, steps=2)
    one, other = grid.pictures[0, 0, 0], grid.pictures[0, 0, 1]
    assert one.image.size != other.image.size or far(one, other) > 4
    field = {"cfg": "guidance_scale"}.get(axis.split("=")[0], axis.split("=")[0])
    assert getattr(one.settings, field) != getattr(other.settings, field)


def test_the_page_says_what_was_varied(emoji: LatentDiffusion, library: Path, tmp_path: Path) -> None:
    grid = compare(
        "cat face, red",
        ("prompt", ["face, red", "eye"]),
        "hypernet=ink",
        model=emoji,
        seed=5,
        steps=1,
        negative="dog",
        sampler="euler_a",
        hypernetworks=library,
    )
    info = read_infotext(settings_text(grid.save(tmp_path / "grid.png")))
    assert (info.prompt, info.negative, info.seed, info.sampler) == ("cat face, red", "dog", 5, "Euler a")
    assert list(info.hypernet_hashes) == ["ink"]
    assert info.fields == {
        "Script": "X/Y/Z plot",
        "X Type": "Prompt S/R",
        "X Values": '"face, red",eye',
        "Y Type": "Hypernetwork",
        "Y Values": "ink",
    }
    assert Image.open(tmp_path / "grid.png").width > 2 * 128
    assert any("28 of 28 projections reached" in note for note in grid.notes)


def test_the_page_names_the_usual_sampler_where_none_was(emoji: LatentDiffusion) -> None:
    grid = compare("cat", "seed=1,2", model=emoji, steps=1)
    assert read_infotext(grid.parameters).sampler == "DPM++ 2M Karras"


def test_side_scales_the_page(emoji: LatentDiffusion) -> None:
    small, large = (
        compare("cat", "seed=1,2", model=emoji, steps=1, side=side).image.width for side in (64, 256)
    )
    assert large > small + 300


def test_equal_settings_are_drawn_together(
    emoji: LatentDiffusion, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    draw = batches.draw_pictures

    def counted(*given: Any, **settings: Any) -> torch.Tensor:
        sizes.append(len(settings["seeds"]))
        return draw(*given, **settings)

    monkeypatch.setattr(batches, "draw_pictures", counted)
    compare("cat", "seed=1-5", "cfg=1,2", model=emoji, steps=1, batch=4)
    assert sizes == [4, 1, 4, 1]


@pytest.mark.parametrize(
    ("axes", "change", "message"),
    [
        (["strength=0,1"], {}, "'strength' has nothing to act on"),
        (["seed=1", "seed=2"], {}, "axis 'seed' is given twice"),
        (["hypernet=inc"], {}, "unknown hypernetwork 'inc'; did you mean 'ink'"),
        (["hypernet=torn"], {}, "torn.pt is damaged"),
        (["seed=1-100", "cfg=1-100"], {}, "100 x 100 x 1 pictures are more than 2000"),
        (["prompt=dog,cat"], {}, "'dog' is not in the prompt"),
        (["seed=1"], {"batch": 0}, "batch must be a whole number"),
        (["seed=1"], {"guidance_scale": float("nan")}, "guidance_scale must be a number"),
        ([("strenth", [1])], {}, "did you mean 'strength'"),
        (["hypernet=<ink>"], {}, "is no hypernetwork's name"),
    ],
)
def test_refuses_before_anything_is_drawn(
    axes: list[Any], change: dict[str, Any], message: str, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (library / "torn.pt").write_bytes((library / "ink.pt").read_bytes()[:999])
    monkeypatch.setattr(comparison, "open_model", lambda *given, **how: pytest.fail("a model was opened"))
    with pytest.raises(UserError, match=message):
        compare("cat", *axes, hypernetworks=library, **change)


def test_strengths_reach_full_width_tags(emoji: LatentDiffusion, library: Path) -> None:
    axis = ("strength", [0, 1])
    grid = compare(
        "cat \uff1chypernet\uff1aink\uff1a0.5\uff1e",
        axis,
        model=emoji,
        seed=1,
        steps=2,
        hypernetworks=library,
    )
    assert far(grid.pictures[0, 0, 0], grid.pictures[0, 0, 1]) > 4


def test_missing_networks_may_be_left_out(emoji: LatentDiffusion, library: Path) -> None:
    grid = compare(
        "cat", "hypernet=inc,ink", model=emoji, seed=1, steps=1, hypernetworks=library, missing="warn"
    )
    assert any(note.startswith("drawn without 'inc'") for note in grid.notes)
