"""The doctor finds what is sound sound, and names what is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import PIPELINES

from hyperbrush.cli import main
from hyperbrush.commands.doctor import examine
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.hypernetworks.attention.context_network import ContextNetwork
from hyperbrush.hypernetworks.convert.compression import compress, read_folder
from hyperbrush.hypernetworks.generator import Hypernetwork, TargetNetwork
from hyperbrush.ldm.models.pipelines import as_model
from hyperbrush.ldm.modules.attention_sites import attention_sites


@pytest.fixture
def files(tiny: Any, tmp_path: Path) -> list[Path]:
    torch.manual_seed(0)
    made = []
    for name, activation in (("affine", "linear"), ("bent", "relu")):
        hn = AttentionHypernetwork.for_unet(
            tiny.unet, activation=activation, weight_init="XavierNormal", name=name
        )
        made.append(hn.save(tmp_path / f"{name}.pt"))
    broken = tmp_path / "broken.pt"
    broken.write_bytes(made[0].read_bytes()[:900])
    foreign = AttentionHypernetwork([12], name="foreign").save(tmp_path / "foreign.safetensors")
    return [*made, broken, foreign]


def test_a_sound_machine_and_broken_files(tiny: Any, files: list[Path], tmp_path: Path) -> None:
    told: list[str] = []
    found = examine(
        tiny, files, name="tiny", prompts=["red square"], steps=2, pairs=2, on_progress=told.append
    )
    assert [(name, f.what) for name, f in found.wrong] == [("broken.pt", "read")]
    assert found.of_other_models == ["foreign.safetensors"]
    assert found.files_alone
    page = found.save(tmp_path / "page.md").read_text(encoding="utf-8")
    assert "Look at:** broken.pt: read\n\nFor other models than this one: foreign.safetensors\n" in page
    assert "| fused |" in page.split("## bent.pt")[0]
    assert "| fused |" not in page.split("## bent.pt")[1]
    assert page.count("bit-identical") == 2
    assert "of 8 projections reached" in page or "projections reached" in page
    assert (tmp_path / "page.png").stat().st_size > 500
    assert told[0] == "looking at affine.pt"
    assert told[-1] == "drawing"


def test_files_of_one_name_stand_apart_and_packs_are_looked_into(tiny: Any, tmp_path: Path) -> None:
    hn = AttentionHypernetwork.for_unet(tiny.unet, weight_init="XavierNormal", name="ink")
    files = [hn.save(tmp_path / place / "ink.pt") for place in ("a", "b")]
    files[0].write_bytes(b"torn")
    pack = compress(read_folder(tmp_path / "b")).save(tmp_path / "looks.pack.safetensors")
    found = examine(tiny, [*files, pack / "ink"], prompts=["red square"], steps=1, pairs=1)
    assert [(name, f.what) for name, f in found.wrong] == [(str(files[0]), "read")]
    assert len(found.files) == 3


def test_generated_weights_are_nothing_wrong(tiny: Any, tmp_path: Path) -> None:
    maker = Hypernetwork(["attn2"], target=TargetNetwork(tiny), embedding_dim=16, hidden_dim=16, rank=2)
    file = maker.generate_weights(None).save(tmp_path / "made.safetensors")
    found = examine(tiny, [file], prompts=["red square"], steps=1, pairs=1)
    assert not found.wrong
    assert "generated weights" in found.page()


@pytest.mark.parametrize("name", ["SD3", "Flux", "PixArt"])
def test_a_transformers_pipeline(name: str, tmp_path: Path) -> None:
    pipe = PIPELINES[name]()
    model = as_model(pipe)
    own = AttentionHypernetwork.for_transformer(pipe.transformer, weight_init="XavierNormal", name="own")
    file = own.save(tmp_path / "own.safetensors")
    old = AttentionHypernetwork([768], name="old").save(tmp_path / "old.pt")
    found = examine(model, [file, old], prompts=["a"], steps=1, pairs=1)
    assert not found.wrong, found.page()
    assert found.of_other_models == ["old.pt"]
    (about,) = [f.found for f in found.environment if f.what == "model"]
    sites = attention_sites(pipe.transformer)
    assert f"{sites[0].family} transformer" in about
    assert f"{sum(s.stream == 'picture' for s in sites)} of the picture" in about
    told = {f.what: f.found for f in found.files["own.safetensors"]}
    assert float(told["effect on the denoiser's output"].split()[0]) > 0
    assert told["after detaching"] == "bit-identical"


def test_a_wrong_result_is_seen(tiny: Any, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    right = ContextNetwork.forward

    def slightly_wrong(self: Any, x: Any, rows: Any = None) -> Any:
        out = right(self, x, rows)
        return out if out.dtype == torch.float64 else out * 1.01

    monkeypatch.setattr(ContextNetwork, "forward", slightly_wrong)
    found = examine(tiny, files[:1], prompts=["red square"], steps=2, pairs=1)
    assert {f.what for _, f in found.wrong} >= {"transform against float64", "fused"}
    assert not found.files_alone


def test_the_command_writes_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    AttentionHypernetwork([128, 256], name="still").save("still.pt")
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--file", "still.pt", "--steps", "2", "--prompt", "red apple", "--out", "page.md"])
    assert stop.value.code == 0
    assert "Everything holds." in capsys.readouterr().out
    assert Path("page.md").is_file()
    assert Path("page.png").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--hypernetworks", "nowhere"])
    assert stop.value.code == 2
