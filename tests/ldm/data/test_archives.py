"""Tars (WebDataset's) and tables (Parquet, Arrow) are read as folders are, to the bit."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import ImageFolder, LatentCache, Masks, archives, cache_latents, scan


def png(seed: int, size=(16, 16), kind="PNG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    made = io.BytesIO()
    Image.fromarray(noise).save(made, kind)
    return made.getvalue()


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


FILES = {
    "000.png": png(0),
    "000.txt": b"a red cat",
    "001.jpg": png(1, (24, 16), "JPEG"),
    "001.json": json.dumps({"caption": "a dog"}).encode(),
    "in/002.png": png(2),
    "in/002.mask.png": png(3),
    "in/002.caption": b"a bird",
    "003.cls": b"7",
}


def encode(images):
    return {"mean": torch.nn.functional.avg_pool2d(images, 4), "std": torch.ones(len(images), 3, 4, 4)}


def examples(dataset):
    return [
        {k: v for k, v in dataset.example(i, epoch).items() if k != "path"}
        for epoch in range(2)
        for i in range(len(dataset))
    ]


def same(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys()
        and all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
        for a, b in zip(one, other, strict=True)
    )


def test_a_tar_is_as_the_folder_that_was_packed(tmp_path):
    folder, tar = write_folder(tmp_path / "f", FILES), write_tar(tmp_path / "f.tar", FILES)
    how = {"size": 16, "flip": 0.5, "seed": 3, "masks": Masks("files", downscale=4)}
    packed, plain = ImageFolder(tar, **how), ImageFolder(folder, **how)
    assert packed.captions == ["a red cat", "a dog", "a bird"]
    assert same(examples(packed), examples(plain))
    assert [Path(p).relative_to(tar) for p in packed.paths] == [
        Path(p).relative_to(folder) for p in plain.paths
    ]
    assert [p.path.name for p in packed.problems] == ["003.cls"]
    assert packed.problems[0].reason == plain.problems[0].reason
    for data in (packed, plain):
        with LatentCache(tmp_path / "cache", "x") as cache:
            latents = cache_latents(data, encode, cache)
        assert torch.equal(
            latents.example(0, 1)["latent_mean"], encode(data.example(0, 1)["image"][None])["mean"][0]
        )
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1  # by content: encoded once


def test_a_folder_of_shards_and_pictures(tmp_path):
    write_folder(tmp_path, {"a.png": png(9)})
    write_tar(tmp_path / "shard-0.tar", {"0.png": png(0), "0.txt": b"first", "./1.png": png(1)})
    write_tar(tmp_path / "shard-1.tar", {"0.png": png(2), "0.txt": b"second", ".hidden.png": png(3)})
    found = scan(tmp_path)
    names = [(item.path.relative_to(tmp_path).as_posix(), item.caption) for item in found.items]
    assert names == [
        ("a.png", "a"),
        ("shard-0.tar/0.png", "first"),
        ("shard-0.tar/1.png", "1"),
        ("shard-1.tar/0.png", "second"),
    ]


def test_members_that_lead_out_are_not_followed(tmp_path):
    write_folder(tmp_path, {"out.png": png(0)})
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name in ("../out.png", "/out.png", "in.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png(1))
            tar.addfile(member, io.BytesIO(png(1)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "out.png")
        tar.addfile(link)
    data = ImageFolder(tmp_path / "bad.tar", size=16)
    assert [Path(p).name for p in data.paths] == ["in.png", "out.png"]
    inside = data.example(0, 0)["image"]
    assert torch.equal(data.example(1, 0)["image"], inside)  # the member's, not the file beside


def test_broken_and_compressed_tars_are_named(tmp_path):
    write_folder(tmp_path, {"a.png": png(0)})
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    write_tar(tmp_path / "c.tar.gz", {"0.png": png(0)}, "w:gz")
    report = scan(tmp_path).report()
    assert "b.tar: is no tar archive that can be read" in report
    assert "c.tar.gz: of archives plain .tar files alone are read; unpack it" in report
    (tmp_path / "cut").mkdir()
    cut = write_tar(tmp_path / "cut/d.tar", {"0.png": png(0), "1.png": png(1)})
    cut.write_bytes(cut.read_bytes()[:1200])
    with pytest.raises(
        UserError, match=r"1 files are not read:\n  d.tar: is no tar archive that can be read"
    ):
        ImageFolder(tmp_path / "cut")


def table(rows: int = 5):
    pa = pytest.importorskip("pyarrow")
    cells = [{"bytes": png(i, (16 + 8 * (i % 2), 16)), "path": f"{i}.png"} for i in range(rows)]
    return pa.table({"image": cells, "text": [f"row {i}" for i in range(rows)], "other": list(range(rows))})


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_a_table_is_as_the_folder_of_its_pictures(kind, tmp_path):
    made = table()
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"t.{'parquet' if kind == 'parquet' else 'arrow'}"
    if kind == "parquet":
        pyarrow.parquet.write_table(made, path, row_group_size=2)
    else:
        new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with new(str(path), made.schema) as writer:
            writer.write_table(made)
    names = {f"{i}.png": made["image"][i]["bytes"].as_py() for i in range(5)}
    texts = {f"{i}.txt": f"row {i}".encode() for i in range(5)}
    plain = ImageFolder(write_folder(tmp_path / "plain", names | texts), size=16, flip=0.5)
    data = ImageFolder(path, size=16, flip=0.5)
    assert same(examples(data), examples(plain))
    assert data.sizes == plain.sizes
    assert [i.source for i in scan(path).items] == ["metadata"] * 5
    assert [i.caption for i in scan(path, "none").items] == [""] * 5


def test_other_columns_paths_and_lists_of_captions(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    write_folder(tmp_path, {"pics/a.png": png(0), "pics/b.png": png(1)})
    rows = {"img": ["pics/a.png", "pics/b.png"], "caption": [["one", " two "], ["three"]]}
    pyarrow.parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
    found = scan(tmp_path / "t.parquet").items
    assert [item.written for item in found] == [("one", "two"), ("three",)]
    plain = pa.table({"jpg": [png(0), b"broken"], "prompt": ["x", "y"]})
    pyarrow.parquet.write_table(plain, tmp_path / "b.parquet")
    broken = scan(tmp_path / "b.parquet")
    assert [item.caption for item in broken.items] == ["x"]
    assert "00000001.row: not a picture Pillow can read" in broken.report()


def test_what_a_table_lacks_is_said(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    def write(**columns):
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
        archives._table.cache_clear()
        return tmp_path / "t.parquet"

    with pytest.raises(
        UserError, match=r"no column of pictures among photo, text; expected one named image or"
    ):
        scan(write(photo=[png(0)], text=["x"]))
    with pytest.raises(UserError, match=r"the caption of .*00000000.row is 3; expected a text"):
        scan(write(image=[png(0)], text=[3]))
    with pytest.raises(UserError, match=r"its table has no column text or caption"):
        ImageFolder(write(image=[png(0)]))
    assert len(scan(write(image=[png(0)]), "none").items) == 1
    (tmp_path / "t.parquet").write_bytes(b"rubbish")
    archives._table.cache_clear()
    with pytest.raises(UserError, match=r"t.parquet is no table that can be read"):
        scan(tmp_path / "t.parquet")
    monkeypatch.setattr(archives, "find_spec", lambda name: None)
    archives._table.cache_clear()
    with pytest.raises(UserError, match=r"is read with an extra: pip install 'hyperbrush\[parquet\]'"):
        scan(tmp_path / "t.parquet")


def test_a_folder_saved_by_hugging_face_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.open(io.BytesIO(png(i))) for i in range(3)]
    made = datasets.Dataset.from_dict(
        {"image": pictures, "text": ["a", "b", "c"]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "made.parquet")
    for path in (tmp_path / "saved", tmp_path / "made.parquet"):
        data = ImageFolder(path, size=16)
        assert data.captions == ["a", "b", "c"]
        assert not data.problems
        for i in range(3):
            seen = ((data.example(i, 0)["image"].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
            assert np.array_equal(seen, np.asarray(pictures[i]))
