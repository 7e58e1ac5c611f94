"""Packs: what is given back, its error and bytes, its names, its files, and what is refused."""

import itertools
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyperbrush.cli import main
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import (
    AttentionHypernetwork,
    GeneratedWeights,
    HypernetworkLibrary,
    Pack,
    attach,
    load,
)
from hyperbrush.hypernetworks.convert.compression import compress, read_folder
from hyperbrush.hypernetworks.files import load_attention
from hyperbrush.hypernetworks.generator import Factors, TaskCondition
from hyperbrush.hypernetworks.library.inspection import generated_facts
from hyperbrush.hypernetworks.library.rename import discard, rename
from hyperbrush.hypernetworks.weights.coding import Triples, plain, ranks_within, rows
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.trash import Trash

FORMS = ("safetensors", "lora-diffusers", "lora-kohya", "lora-peft")
LAYERS = {
    f"{block}.attentions.0.transformer_blocks.0.{kind}.{projection}": (
        64,
        32 if kind == "attn2" and projection in ("to_k", "to_v") else 64,
    )
    for block in ("down_blocks.1", "up_blocks.0")
    for kind in ("attn1", "attn2")
    for projection in ("to_q", "to_k", "to_v", "to_out.0")
}


def lora(seed: int = 0, rank: int = 8, decay: float = 0.5, width: int = 32) -> GeneratedWeights:
    """A LoRA whose singular values fall, as trained ones' do."""
    torch.manual_seed(seed)
    falling = decay ** torch.arange(rank)
    made = {
        layer: Factors(
            torch.randn(rank, width if seen == 32 else seen), torch.randn(out, rank) * falling * 0.02
        )
        for layer, (out, seen) in LAYERS.items()
    }
    return GeneratedWeights(made, name=f"ink{seed}", metadata={"generator_step": 7})


def attention(seed: int = 0, **settings: Any) -> AttentionHypernetwork:
    torch.manual_seed(seed)
    made = AttentionHypernetwork(**{"widths": [32, 64], "activation": "relu"} | settings)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return made.eval()


def dense(weights: GeneratedWeights) -> dict[str, Tensor]:
    return {layer: f.scale * f.up.double() @ f.down.double() for layer, f in weights.factors.items()}


def distance(one: GeneratedWeights, other: GeneratedWeights) -> float:
    """‖ΔW − ΔW'‖ ÷ ‖ΔW‖, by the matrices themselves."""
    a, b = dense(one), dense(other)
    left = sum(float((a[layer] - b.get(layer, torch.zeros(()))).square().sum()) for layer in a)
    return float((left / sum(float(m.square().sum()) for m in a.values())) ** 0.5)


@pytest.mark.parametrize("error", [0.02, 0.1, 0.3])
def test_what_is_told_is_what_is_lost(error: float) -> None:
    given = lora()
    member = compress({"ink": given}, error=error).members["ink"]
    back = member.adapter("ink")
    assert isinstance(back, GeneratedWeights)
    lost = distance(given, back)
    assert member.error == pytest.approx(lost, abs=2e-6)
    assert error / 2 < lost < error + 0.01  # ranks go as far as they may, eight bits add little
    assert back.metadata == given.metadata


def test_every_layout_in_one_folder_in_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    given = {f"look {i}": lora(i) for i in range(len(FORMS))}
    for (name, weights), form in zip(given.items(), FORMS, strict=True):
        weights.save(folder / (name if form == "lora-peft" else f"{name}.safetensors"), form)
    pack = compress(read_folder(folder), name="looks")
    path = pack.save(tmp_path / "looks.pack.safetensors")
    files = [f for f in folder.rglob("*") if f.is_file() and f.suffix == ".safetensors"]
    assert path.stat().st_size < 0.25 * sum(file.stat().st_size for file in files)
    found = Pack.load(path)
    assert found.tasks == tuple(given)
    assert found.name == "looks"
    for name, weights in given.items():
        back = found.generate_weights(TaskCondition(name))
        assert isinstance(back, GeneratedWeights)
        assert back.name == name
        assert distance(weights, back) < 0.21
    assert compress(read_folder(folder), name="looks").save(tmp_path / "b.pack.safetensors").read_bytes() == (
        path.read_bytes()
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layer_structure": (1, 1)},
        {"layer_norm": True, "activation": "swish"},
        {"activation": "prelu", "layer_structure": (1, 2, 2, 1)},
        {"widths": {"down_blocks.1.attentions.0.transformer_blocks.0.attn2": 32}, "activation": None},
    ],
    ids=["webui", "one layer", "LayerNorm", "PReLU", "per site"],
)
def test_attention_hypernetworks_come_back_whole(settings: Mapping[str, Any], tmp_path: Path) -> None:
    given = attention(**settings)
    path = compress({"net": given}, error=0.02).save(tmp_path / "nets.pack.safetensors")
    back = load_attention(path / "net")
    assert back.settings == load_attention(given.save(tmp_path / "net.safetensors")).settings
    assert not back.training
    for (key, pair), (own, other) in zip(given.pairs(), back.pairs(), strict=True):
        assert key == own
        context = torch.randn(3, 7, pair.width)
        for one, two in ((pair.key, other.key), (pair.value, other.value)):
            said, again = one(context), two(context)
            assert (said - again).norm() < 0.03 * (said - context).norm()


def test_an_author_and_a_licence_come_back(tmp_path: Path) -> None:
    about = {"modelspec.author": "me", "modelspec.trigger_phrase": "ink style", "sd_checkpoint_name": "sd"}
    given = attention()
    given.metadata |= about
    path = compress({"net": given}).save(tmp_path / "nets.pack.safetensors")
    found = load_attention(path / "net").metadata
    assert {key: found.get(key) for key in about} == about


def test_numbers_too_large_for_a_precision_are_refused(tmp_path: Path) -> None:
    large = GeneratedWeights({next(iter(LAYERS)): Factors(torch.full((1, 64), 1e12), torch.ones(64, 1))})
    path = compress({"net": large}).save(tmp_path / "nets.pack.safetensors")
    for file in (path / "net", large.save(tmp_path / "net.safetensors")):
        assert load(file).rank == 1
        with pytest.raises(UserError, match="has numbers too large for torch.float16"):
            load(file, torch.float16)


def test_matrices_of_low_rank_take_fewer_bytes_than_their_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = attention()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 2:
                out, width = parameter.shape
                parameter.copy_(torch.randn(out, 2) @ torch.randn(2, width))
    coded = compress({"net": net}, error=0.01).members["net"].coded
    assert {c.rank for c in coded.values() if len(c.shape) == 2} == {2}
    assert {
        c.rank for c in compress({"net": attention()}).members["net"].coded.values() if len(c.shape) == 2
    } == {-1}


def test_ranks_are_the_cheapest_that_keep_the_error() -> None:
    """Every choice of ranks of two unlike layers, by force."""
    torch.manual_seed(3)
    layers = {"wide": Triples.of(torch.randn(6, 40) @ torch.diag(0.9 ** torch.arange(40.0)))}
    layers["small"] = Triples.of(torch.randn(5, 4))
    whole = sum(float(t.s.square().sum()) for t in layers.values())
    for error in (0.1, 0.3, 0.5, 0.8):

        def cost(ranks: Mapping[str, int]) -> int:
            return sum(r * (sum(layers[n].shape) + 4) for n, r in ranks.items())

        best = min(
            (
                cost(ranks)
                for pair in itertools.product(*(range(len(t.s) + 1) for t in layers.values()))
                if (ranks := dict(zip(layers, pair, strict=True)))
                and sum(float(layers[n].s[r:].square().sum()) for n, r in ranks.items()) <= error**2 * whole
            ),
        )
        found = ranks_within(layers, error)
        left = sum(float(layers[n].s[r:].square().sum()) for n, r in found.items())
        assert left <= error**2 * whole + 1e-12
        dearest = max(sum(t.shape) + 4 for t in layers.values())
        assert cost(found) <= best + dearest  # a greedy choice: at most one triple more than the best


def test_eight_bits_and_plain_numbers() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(9, 5) * torch.logspace(-8, 8, 9)[:, None]
    coded = rows(matrix)
    assert ((coded.tensor() - matrix).abs() <= matrix.abs().amax(1, keepdim=True) * (0.5 / 127 + 1e-6)).all()
    assert torch.equal(rows(torch.zeros(2, 3)).tensor(), torch.zeros(2, 3))
    assert torch.equal(plain(matrix[0]).tensor(), matrix[0])
    one = Triples.of(torch.outer(torch.tensor([1.0, -127.0]), torch.tensor([127.0, 64.0, 0.0]))).coded(1)
    assert torch.allclose(
        one.tensor(), torch.outer(torch.tensor([1.0, -127.0]), torch.tensor([127.0, 64.0, 0.0]))
    )
    zeros = GeneratedWeights({"down_blocks.1.attn2.to_k": Factors(torch.zeros(2, 8), torch.zeros(8, 2))})
    back = compress({"nothing": zeros})["nothing"]
    assert isinstance(back, GeneratedWeights)
    assert not back.delta("down_blocks.1.attn2.to_k").any()


def fill(folder: Path) -> HypernetworkLibrary:
    """A library with a pack of both kinds and a network of its own."""
    folder.mkdir()
    pack = compress({"ink": lora(), "net": attention(widths=[32, 64])})
    pack.save(folder / "looks.pack.safetensors")
    attention(1).save(folder / "water.safetensors")
    return HypernetworkLibrary(folder)


def test_members_are_names_of_the_library(tmp_path: Path) -> None:
    library = fill(tmp_path / "lib")
    assert library.names() == ["ink", "net", "water"]
    for name in ("looks/ink", "ink", "looks.pack.safetensors/ink"):
        assert isinstance(library.load(name), GeneratedWeights)
    assert isinstance(library.load("looks/net"), AttentionHypernetwork)
    attention(2).save(tmp_path / "lib" / "ink.safetensors")
    assert library.names() == ["ink", "looks/ink", "net", "water"]
    with pytest.raises(UserError, match="unknown hypernetwork 'looks/inc'; did you mean 'looks/ink'"):
        library.find("looks/inc")
    entries = {entry.name: entry for entry in library.entries()}
    assert all(entry.error is None for entry in entries.values())
    ink = entries["looks/ink"].summary
    assert ink is not None
    assert (ink.kind, ink.format, ink.step, ink.sites) == ("generated", "pack", 7, 4)
    net = entries["net"].summary
    assert net is not None
    assert (net.kind, net.format, net.widths) == ("attention hypernetwork", "pack", (32, 64))
    assert library.sha256("looks/ink") == library.sha256("net") != library.sha256("water")


def test_side_files_are_the_packs_and_a_member_goes_nowhere_alone(tmp_path: Path) -> None:
    library = fill(tmp_path / "lib")
    library.write_notes("looks/ink", library.notes("looks/ink"))
    assert (tmp_path / "lib" / "looks.pack.json").is_file()
    for act in (
        lambda: rename(library, "ink", "pen"),
        lambda: discard(library, "ink", Trash(tmp_path / "bin")),
    ):
        with pytest.raises(UserError, match=r"'ink' is one of several in the pack looks\.pack\.safetensors"):
            act()
    assert library.names() == ["ink", "net", "water"]
    assert generated_facts(tmp_path / "lib" / "looks.pack.safetensors" / "ink")["format"].startswith(
        "a member of"
    )


def test_a_member_acts_as_the_adapter_that_is_given_back(
    tmp_path: Path, make_tiny: Callable[..., LatentDiffusion]
) -> None:
    from hyperbrush.generation import generate
    from hyperbrush.hypernetworks.weights.layers import find_targets

    model = make_tiny()
    torch.manual_seed(1)
    given = GeneratedWeights(
        {
            t.name: Factors(torch.randn(4, t.in_width), torch.randn(t.out_width, 4) * 0.2)
            for t in find_targets(model.unet)
        }
    )
    (tmp_path / "lib").mkdir()
    compress({"ink": given}).save(tmp_path / "lib" / "looks.pack.safetensors")
    library = HypernetworkLibrary(tmp_path / "lib")
    options: Any = {"model": model, "steps": 2, "seed": 3, "size": (32, 32)}
    picture = generate("cat face <hypernet:looks/ink:0.7>", hypernetworks=library.folder, **options)[0]
    plain_one = generate("cat face", hypernetworks=library.folder, **options)[0]
    with attach(model, [(library.load("looks/ink"), 0.7)]):
        by_hand = generate("cat face", hypernetworks=library.folder, **options)[0]
    assert picture.image.tobytes() == by_hand.image.tobytes() != plain_one.image.tobytes()
    assert picture.settings.hypernet_hashes == {"looks/ink": library.sha256("looks/ink")[:10]}


def changed(path: Path, change: Callable[[dict[str, Any]], object], target: Path) -> Path:
    """A copy of a pack with another header."""
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    config = json.loads(header["hyperbrush.config"])
    change(config)
    save_file(load_file(path), target, header | {"hyperbrush.config": json.dumps(config)})
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["members"][0].update(ranks=[[0, 10**9]]),
        lambda c: c["members"][0].update(ranks=[[-1, 1]]),
        lambda c: c["members"][0].update(ranks=[[0, 1], [0, 1]]),
        lambda c: c["members"][0].update(ranks=[]),
        lambda c: c["members"][0].update(ranks=[[10**6, 1]]),
        lambda c: c["members"][0].update(kind="pickle"),
        lambda c: c["members"][0].update(about={}),
        lambda c: c["members"][0].update(error="nan"),
        lambda c: c["members"][0].update(name=3),
        lambda c: c["tensors"][0].__setitem__(1, [10**12, 10**12]),
        lambda c: c["tensors"][0].__setitem__(1, [64, -64]),
        lambda c: c["members"].append(c["members"][0]),
        lambda c: c.pop("members"),
        lambda c: c["members"].clear(),
    ],
)
def test_headers_that_lie(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    good = compress({"ink": lora()}).save(tmp_path / "good.pack.safetensors")
    path = changed(good, change, tmp_path / "bad.pack.safetensors")
    with pytest.raises(UserError, match="bad.pack.safetensors") as said:
        Pack.load(path)
    assert "\n" not in str(said.value)
    good.unlink()
    assert all(entry.error for entry in HypernetworkLibrary(tmp_path).entries())


def test_numbers_that_are_not_those_of_the_header(tmp_path: Path) -> None:
    good = compress({"ink": lora()}).save(tmp_path / "good.pack.safetensors")
    with safe_open(good, framework="pt") as file:
        header = dict(file.metadata())
    for name, value in (
        ("ink.codes", torch.zeros(3, dtype=torch.int8)),
        ("ink.scales", load_file(good)["ink.scales"] * float("nan")),
        ("ink.scales", -load_file(good)["ink.scales"]),
        ("ink.codes", load_file(good)["ink.codes"].float()),
    ):
        bad = tmp_path / "bad.pack.safetensors"
        save_file(load_file(good) | {name: value}, bad, header)
        with pytest.raises(UserError, match="bad.pack.safetensors"):
            load(bad / "ink")
    whole = good.read_bytes()
    for cut in (0, 7, 40, struct.unpack("<Q", whole[:8])[0], len(whole) - 1):
        bad.write_bytes(whole[:cut])
        with pytest.raises(UserError):
            Pack.load(bad)
        assert HypernetworkLibrary(tmp_path).names() != []
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none.pack.safetensors" / "ink")


def test_a_pack_under_another_name_says_how_it_is_called(tmp_path: Path) -> None:
    path = compress({"ink": lora()}).save(tmp_path / "looks.pack.safetensors")
    other = path.rename(tmp_path / "looks.safetensors")
    with pytest.raises(UserError, match="it is a pack of several: call it NAME.pack.safetensors"):
        load(other)
    with pytest.raises(UserError, match=r"a pack is a file ending in \.pack\.safetensors"):
        compress({"ink": lora()}).save(tmp_path / "looks.safetensors")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "at least one adapter"),
        ({"ink": lora(), "other": lora(width=48)}, "are for different models: down_blocks.1"),
        ({"a/b": lora()}, "'a/b' is no name for a member"),
        ({"a:b": lora()}, "no name for a member"),
        (
            {"sd1": AttentionHypernetwork([768]), "sd2": AttentionHypernetwork([1024])},
            "adapters of one model",
        ),
    ],
)
def test_what_cannot_stand_in_one_pack(given: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compress(given)


@pytest.mark.parametrize("error", [-0.1, 1.0, float("nan")])
def test_an_error_out_of_range(error: float) -> None:
    with pytest.raises(UserError, match="is impossible: expected a share"):
        compress({"ink": lora()}, error=error)


def test_pictures_and_unknown_names_are_refused() -> None:
    pack = compress({"ink": lora(), "sea": lora(1)}, name="looks")
    with pytest.raises(
        UserError, match="'looks' knows its members by name alone: give one task, of ink, sea"
    ):
        pack.generate_weights([TaskCondition("ink"), TaskCondition("sea")])
    with pytest.raises(UserError, match="unknown member of the pack 'see'; did you mean 'sea'"):
        pack.generate_weights("see")


def called(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "looks"
    folder.mkdir()
    lora(0).save(folder / "ink.safetensors", "lora-kohya")
    lora(1).save(folder / "sea.safetensors", "lora-diffusers")
    assert called("hyper", "compress", folder) == 0
    said = capfd.readouterr().out
    path = tmp_path / "looks.pack.safetensors"
    assert "ink" in said
    assert "<hypernet:looks/ink:0.8>" in said
    assert called("hyper", "compress", folder) == 2
    assert "exists already" in capfd.readouterr().err
    out = tmp_path / "back.safetensors"
    assert (
        called(
            "hyper", "generate", "--generator", path, "--task", "sea", "--out", out, "--format", "lora-kohya"
        )
        == 0
    )
    assert distance(lora(1), GeneratedWeights.load(out)) < 0.21
    assert (
        called(
            "hyper",
            "generate",
            "--generator",
            path,
            "--text",
            "the sea",
            "--out",
            tmp_path / "no.safetensors",
        )
        == 2
    )
    assert (
        called(
            "hyper", "generate", "--generator", path, "--task", "tree", "--out", tmp_path / "no.safetensors"
        )
        == 2
    )
    assert not (tmp_path / "no.safetensors").exists()


def test_the_command_names_every_file_that_cannot_go_in(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "looks"
    folder.mkdir()
    lora(0).save(folder / "ink.safetensors")
    (folder / "broken.safetensors").write_bytes(b"nothing")
    save_file({"lora_te_text_model_encoder.lora_down.weight": torch.ones(1, 4)}, folder / "words.safetensors")
    assert called("hyper", "compress", folder) == 2
    said = capfd.readouterr().err
    assert "2 of 3 cannot go into a pack" in said
    assert "broken.safetensors" in said
    assert "words.safetensors" in said
    assert not (tmp_path / "looks.pack.safetensors").exists()
    assert called("hyper", "compress", tmp_path / "nowhere") == 2
    (tmp_path / "empty").mkdir()
    assert called("hyper", "compress", tmp_path / "empty") == 2
    assert "holds no LoRA and no hypernetwork" in capfd.readouterr().err


def test_attention_hypernetworks_by_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "nets"
    folder.mkdir()
    attention(0).save(folder / "a.pt")
    attention(1).save(folder / "b.safetensors")
    path = tmp_path / "small.pack.safetensors"
    assert called("hyper", "compress", folder, "--out", path, "--error", "0.05") == 0
    assert called("hyper", "generate", "--generator", path, "--task", "b", "--out", tmp_path / "b.pt") == 0
    assert load_attention(tmp_path / "b.pt").widths == [32, 64]
    assert called("hyper", "generate", "--generator", path, "--task", "b", "--format", "lora-peft") == 2
    assert "then hyperbrush convert" in capfd.readouterr().err


def test_a_member_and_the_file_it_was_made_of_are_both_found(tmp_path: Path) -> None:
    """A pack beside the folder it was made of, as the command writes it by default."""
    compress({"ink": lora()}, name="loras").save(tmp_path / "loras.pack.safetensors")
    lora().save(tmp_path / "loras" / "ink.safetensors")
    found = HypernetworkLibrary(tmp_path).find("loras/ink")
    assert found == tmp_path / "loras.pack.safetensors" / "ink"


def test_a_member_that_no_path_can_say_is_not_listed(tmp_path: Path) -> None:
    file = compress({"ink": lora(), "oil": lora(1)}, name="looks").save(tmp_path / "looks.pack.safetensors")
    content = file.read_bytes()
    assert content.count(b'\\"name\\": \\"oil\\"') == 1
    file.write_bytes(content.replace(b'\\"name\\": \\"oil\\"', b'\\"name\\": \\"/il\\"'))
    assert HypernetworkLibrary(tmp_path).names() == ["ink"]
    with pytest.raises(UserError):
        Pack.load(file)


def test_a_lora_of_which_a_part_would_be_lost_is_refused(tmp_path: Path) -> None:
    file = lora().save(tmp_path / "loras" / "both.safetensors", "lora-kohya")
    tensors = load_file(file)
    tensors |= {
        f"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_{part}.weight": torch.zeros(2, 2)
        for part in ("up", "down")
    }
    save_file(tensors, file)
    with pytest.raises(UserError, match="is a LoRA of other layers too, which would be left out"):
        read_folder(tmp_path / "loras")


def test_what_generate_would_replace_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = compress({"ink": lora()}, name="looks").save(tmp_path / "looks.pack.safetensors")
    before = file.read_bytes()
    words = ["hyper", "generate", "--generator", str(file), "--task", "ink", "--out"]
    for out, said in ((file, "would be a pack"), (tmp_path / "a.safetensors", "exists already")):
        if out != file:
            out.write_bytes(b"mine")
        with pytest.raises(SystemExit) as stop:
            main([*words, str(out)])
        assert stop.value.code == 2
        assert said in capfd.readouterr().err
    assert file.read_bytes() == before
    with pytest.raises(SystemExit) as stop:
        main([*words, str(tmp_path / "a.safetensors"), "--overwrite"])
    assert stop.value.code == 0
    assert (tmp_path / "a.safetensors").read_bytes() != b"mine"
