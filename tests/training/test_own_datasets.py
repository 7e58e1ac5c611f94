"""Datasets of one's own in every trainer: as folders of the same pictures train, stopped and gone on with as well."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import hyperbrush as hb
from hyperbrush.errors import UserError
from hyperbrush.ldm.data import ImageFolder, LatentCache, Mixture, Part, PictureRows, cache_latents
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.autoencoder import first_stage
from hyperbrush.ldm.modules.losses import FirstStageLoss
from hyperbrush.training import Interrupted, Trainer, TrainerConfig
from hyperbrush.training.attention.run import HypernetworkRun, configured, train_run
from hyperbrush.training.before.plan import plan
from hyperbrush.training.generator.config import GeneratorConfig
from hyperbrush.training.generator.objective import generator_objective
from hyperbrush.training.generator.styles import open_styles
from hyperbrush.training.ldm.config import settings_of
from hyperbrush.training.ldm.first_stage import FirstStageObjective
from hyperbrush.training.ldm.objectives import DenoisingObjective
from hyperbrush.training.ldm.run import train_ldm

COUNT = 12
SHORT: dict[str, Any] = {
    "max_steps": 4, "batch_size": 4, "validate_every": 2, "checkpoint_every": 2, "validation_share": 0.2,
    "warmup_steps": 0, "schedule": "constant", "log_every": 1,
}  # fmt: skip


def content(i: int, first: int = 0) -> bytes:
    noise = np.random.default_rng(first + i).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    made = io.BytesIO()
    Image.fromarray(noise).save(made, "PNG")
    return made.getvalue()


def row(i: int) -> dict[str, Any]:
    return {"image": Image.open(io.BytesIO(content(i))), "text": f"red square {i}"}


class Mapped(Dataset):  # type: ignore[type-arg]
    def __getitem__(self, i: int) -> dict[str, Any]:
        return row(i)

    def __len__(self) -> int:
        return COUNT


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        yield from map(row, range(COUNT))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(COUNT):
        (place / f"{i:03d}.png").write_bytes(content(i))
        (place / f"{i:03d}.txt").write_text(f"red square {i}")
    return place


def hugging_face(folder: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    columns = {
        "image": [str(path) for path in sorted(folder.glob("*.png"))],
        "text": [f"red square {i}" for i in range(COUNT)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def of_files(folder: Path) -> list[dict[str, Any]]:
    return [
        {"image": path.read_bytes(), "text": path.with_suffix(".txt").read_text()}
        for path in sorted(folder.glob("*.png"))
    ]


FORMS: dict[str, Any] = {
    "torch": lambda folder: Mapped(),
    "stream": lambda folder: Stream(),
    "list": lambda folder: [row(i) for i in range(COUNT)],
    "hugging face": hugging_face,
}


def train(
    model: LatentDiffusion, data: Any, run: Path, *, stop_at: int = 0, resume: bool = False, **settings: Any
) -> torch.Tensor:
    torch.manual_seed(0)
    network = hb.AttentionHypernetwork.for_unet(model.unet, name="own", layer_structure=[1, 1])
    seen: list[int] = []
    trainer = hb.HypernetworkTrainer(
        network,
        SHORT | settings,
        run=run,
        on_progress=lambda p: seen.append(p.step),
        should_stop=lambda: bool(stop_at) and bool(seen) and seen[-1] >= stop_at,
    )
    trainer.train(model, data, resume=resume)
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", [{}, {"jitter": 0.2, "flip": 0.5}], ids=["cached", "decoded"])
def test_hypernetworks_learn_the_same_and_resume(
    form: str, settings: dict[str, Any], folder: Path, tmp_path: Path, tiny: LatentDiffusion
) -> None:
    of_folder = train(tiny, folder, tmp_path / "folder", **settings)
    own = FORMS[form](folder)
    assert torch.equal(train(tiny, own, tmp_path / "own", **settings), of_folder)
    with pytest.raises(Interrupted):
        train(tiny, own, tmp_path / "stopped", stop_at=2, **settings)
    # as a new process, which makes the dataset anew
    gone_on = train(tiny, FORMS[form](folder), tmp_path / "stopped", resume=True, **settings)
    assert torch.equal(gone_on, of_folder)


def test_other_pictures_than_before_are_told(
    tmp_path: Path, tiny: LatentDiffusion, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(i) for i in range(COUNT)]
    with pytest.raises(Interrupted):
        train(tiny, rows, tmp_path / "run", stop_at=2)
    train(tiny, [*rows[:-1], row(99)], tmp_path / "run", resume=True)
    assert "other pictures than before: 1 were added" in caplog.text
    assert "1 are gone" in caplog.text


def test_what_cannot_be_resumed_exactly_is_refused(tmp_path: Path, tiny: LatentDiffusion) -> None:
    class Noisy(Mapped):
        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"image": torch.rand(3, 32, 32), "text": "x"}

    with pytest.raises(UserError, match="another picture when it is asked for again.*not be resumed exactly"):
        train(tiny, Noisy(), tmp_path / "run")
    with pytest.raises(UserError, match=r"expected one dataset, such as dataset\['train'\]"):
        train(tiny, {"train": Mapped()}, tmp_path / "run")


def test_datasets_in_a_mixture(folder: Path, tmp_path: Path, tiny: LatentDiffusion) -> None:
    how = {"size": 32, "flip": 0.5}
    one, other = (
        Mixture([Part(data, repeats=2), Part(ImageFolder(folder, size=32), loss_weight=0.5)])
        for data in (PictureRows(of_files(folder), **how), ImageFolder(folder, **how))
    )
    assert torch.equal(train(tiny, one, tmp_path / "a"), train(tiny, other, tmp_path / "b"))


def packed(folder: Path, kind: str) -> Path:
    if kind == "tar":
        with tarfile.open(folder.parent / "data.tar", "w") as tar:
            for path in sorted(folder.iterdir()):
                tar.add(path, path.name)
        return folder.parent / "data.tar"
    path = folder.parent / "data.parquet"
    hugging_face(folder).cast_column("image", __import__("datasets").Image(decode=True)).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_tars_and_tables_from_yaml(
    kind: str, folder: Path, tmp_path: Path, tiny: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(folder, kind)
    file = tmp_path / "own.yaml"
    monkeypatch.chdir(tmp_path.parent)
    results = []
    for data in (f"data.{kind}", "pictures"):
        file.write_text(
            yaml.safe_dump({"data": data, "training": SHORT, "network": {"layer_structure": [1, 1]}})
        )
        config = configured(file, hypernetworks=str(tmp_path / "library"))
        result = train_run(config, tmp_path / f"run-{data}", overwrite=True, model=tiny)
        results.append(torch.cat([p.flatten() for p in hb.load(result.file).parameters()]))
        found = plan(config, tiny)
        assert (found.pictures, found.held_out, found.report.usable) == (10, 2, 12)
    assert torch.equal(*results)
    with pytest.raises(UserError, match=r"there is no folder .*gone.tar"):
        train_run(HypernetworkRun.of(name="x", data="gone.tar"), tmp_path / "x", model=tiny)


def test_ldm_train_reads_tars_and_tables(folder: Path, tmp_path: Path) -> None:
    with_tar, with_table = packed(folder, "tar"), packed(folder, "parquet")
    results = []
    for data in (folder, with_tar, with_table):
        values = {
            "kind": "first_stage",
            "data": {"folders": [str(data)], "size": 32},
            "model": {"channels": [8, 16]},
            "training": {"steps": 2, "batch_size": 4},
        }
        file = tmp_path / "stage.yaml"
        file.write_text(yaml.safe_dump(values))
        made = train_ldm(settings_of(file), tmp_path / f"run-{data.name}")
        results.append((made / "diffusion_pytorch_model.safetensors").read_bytes())
    assert results[0] == results[1] == results[2]


def test_first_stages_and_diffusion_models(folder: Path, tmp_path: Path, make_tiny: Any) -> None:
    def both(data: ImageFolder, name: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        stage = first_stage("kl", channels=(8, 16), sample_size=32)
        model = make_tiny()
        model.first_stage.requires_grad_(False)
        with LatentCache(tmp_path / name / "cache", "x") as cache:
            latents = cache_latents(data, model.moments, cache)
        objectives = [
            FirstStageObjective(stage, FirstStageLoss(), data, held_out=data),
            DenoisingObjective(model, latents, held_out=latents),
        ]
        found = []
        for number, objective in enumerate(objectives):
            config = TrainerConfig(steps=3, batch_size=4, validate_every=3, preview_every=100)
            Trainer(objective, config, tmp_path / name / str(number)).train()
            trained = [p for p in objective.parameters() if p.requires_grad]
            found.append(torch.cat([p.detach().flatten() for p in trained]))
        return found

    how = {"size": 32, "flip": 0.5, "seed": 3}
    for one, other in zip(
        both(PictureRows(Mapped(), **how), "own"), both(ImageFolder(folder, **how), "folder"), strict=True
    ):
        assert torch.equal(one, other)


def test_generators(folder: Path, tmp_path: Path, tiny: LatentDiffusion) -> None:
    root = tmp_path / "styles"
    for name, first in (("ink", 0), ("sea", 50), ("moss", 90)):
        (root / name).mkdir(parents=True)
        for i in range(4):
            (root / name / f"{i}.png").write_bytes(content(i, first))
            (root / name / f"{i}.txt").write_text(f"red square {i}")
    (root / "sea/style.txt").write_text("like the sea")

    def of(name: str) -> list[dict[str, Any]]:
        return of_files(root / name)

    own = {"ink": of("ink"), "moss": iter(of("moss")), "sea": str(root / "sea")}
    ones = open_styles(own, tiny, tmp_path / "a")
    others = open_styles(root, tiny, tmp_path / "b")
    assert [s.name for s in ones] == [s.name for s in others]
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert (one.captions, one.references, one.text) == (other.captions, other.references, other.text)
    parts = {"references": of("ink")[:1], "targets": root / "moss"}
    assert open_styles({"x": parts}, tiny, tmp_path / "c")[0].references == 1
    with tarfile.open(root / "packed.tar", "w") as tar:
        tar.add(root / "sea", ".")
    (root / ".ipynb_checkpoints").mkdir()
    assert [s.name for s in open_styles(root, tiny, tmp_path / "b")] == ["ink", "moss", "packed.tar", "sea"]
    assert open_styles(root, tiny, tmp_path / "b")[2].text == "like the sea"
    net = hb.Hypernetwork(
        ["attn2"], target=hb.TargetNetwork(tiny), embedding_dim=32, hidden_dim=32, rank=2, depth=1, heads=4,
        condition_dropout=0.0,
    )  # fmt: skip
    config = GeneratorConfig(
        max_steps=2, batch_size=4, pictures_per_style=2, shared_steps=0, references=2, validate_every=2
    )
    data = {"ink": of("ink"), "moss": of("moss")}
    hb.HypernetworkTrainer(net, config, run=tmp_path / "run").train(tiny, data)
    objective = generator_objective(tiny, net, config, data, None, tmp_path / "again")
    assert len(objective.data) == 8
    for wrong, words in (
        ({}, "no styles: expected a mapping"),
        (3, "styles: expected a folder of styles or a mapping of names to pictures, got int"),
        ({"x": {"train": 1}}, "a style is a mapping of train; expected references and targets"),
        ({"x": of("ink")[:1]}, "style 'x' has 1 picture"),
    ):
        with pytest.raises(UserError, match=words):
            open_styles(wrong, tiny, tmp_path / "d")
    with pytest.raises(UserError, match="style 'x' is no folder, so it has no adapter"):
        open_styles({"x": of("ink")}, tiny, tmp_path / "d", adapters=True)
