import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import LatentCache, content_key


def entry(number):
    return {"mean": torch.full((4, 2, 2), float(number)), "std": torch.ones(4, 2, 2)}


def shards(cache):
    return sorted(cache.folder.glob("*.safetensors"))


def test_content_key(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"abc")
    key = content_key(path, {"size": 64, "crop": "center"})
    assert (
        key
        == content_key(b"abc", {"crop": "center", "size": 64})
        == content_key(
            str(path),
            {
                "size": 64,
                "crop": "center",
            },
        )
    )
    assert key != content_key(b"abc", {"size": 32, "crop": "center"})
    assert key != content_key(b"abd", {"size": 64, "crop": "center"})
    with pytest.raises(UserError, match=r"cannot read .*gone\.png: No such file"):
        content_key(tmp_path / "gone.png", {})
    with pytest.raises(UserError, match="settings of a cache key"):
        content_key(b"", {"size": object()})


def test_entries_survive(tmp_path):
    with LatentCache(tmp_path, "encoder 1") as cache:
        for number in range(5):
            cache.put(str(number), entry(number))
        assert cache.get("3")["mean"][0, 0, 0] == 3
    again = LatentCache(tmp_path, "encoder 1")
    assert len(again) == 5
    assert "4" in again
    assert torch.equal(again.get("4")["mean"], entry(4)["mean"])
    assert again.get("5") is None
    assert LatentCache(tmp_path, "encoder 2").get("4") is None
    assert len(shards(again)) == 1


@pytest.mark.parametrize("options", [{"shard_entries": 2}, {"shard_bytes": 200}])
def test_shards_are_written_on_the_way(tmp_path, options):
    cache = LatentCache(tmp_path, "x", **options)
    for number in range(5):
        cache.put(str(number), entry(number))
    assert len(shards(cache)) == 2
    cache.flush()
    assert len(shards(cache)) == 3
    assert all(cache.get(str(n))["mean"][0, 0, 0] == n for n in range(5))


def test_what_was_put_last_counts(tmp_path):
    cache = LatentCache(tmp_path, "x", shard_entries=1)
    cache.put("a", entry(1))
    cache.put("a", entry(2))
    assert cache.get("a")["mean"][0, 0, 0] == 2
    assert len(cache) == 1


def test_entries_are_written_when_the_body_raises(tmp_path):
    def body():
        with LatentCache(tmp_path, "x") as cache:
            cache.put("a", entry(1))
            raise KeyError

    with pytest.raises(KeyError):
        body()
    assert "a" in LatentCache(tmp_path, "x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_types_are_kept(tmp_path, dtype):
    value = torch.ones(2, 3).to(dtype)
    with LatentCache(tmp_path, "x") as cache:
        cache.put("a", {"value": value.t(), "scalar": value[0, 0], "none": value[:0]})
    found = LatentCache(tmp_path, "x").get("a")
    assert found["value"].dtype == dtype
    assert torch.equal(found["value"], value.t())
    assert found["scalar"].shape == ()
    assert found["none"].shape == (0, 3)


def test_damage_anywhere_is_never_trusted_and_never_a_crash(tmp_path):
    with LatentCache(tmp_path, "x") as cache:
        cache.put("a", entry(1))
        cache.put("b", entry(2))
    (path,) = shards(cache)
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 0x11
        path.write_bytes(damaged)
        cache = LatentCache(tmp_path, "x")
        for key, number in (("a", 1), ("b", 2)):
            found = cache.get(key)
            assert found is None or torch.equal(found["mean"], entry(number)["mean"])
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        assert LatentCache(tmp_path, "x").get("a") is None


def test_a_damaged_entry_can_be_put_again(tmp_path):
    with LatentCache(tmp_path, "x") as cache:
        cache.put("a", entry(1))
    (path,) = shards(cache)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with LatentCache(tmp_path, "x") as cache:
        assert cache.get("a") is None
        cache.put("a", entry(1))
        cache.flush()
        assert cache.get("a") is not None
    assert LatentCache(tmp_path, "x").get("a") is not None


def test_leftovers_of_a_cut_write_are_passed_over(tmp_path):
    with LatentCache(tmp_path, "x") as cache:
        cache.put("a", entry(1))
    (path,) = shards(cache)
    path.rename(path.with_name(f".{path.name}"))
    assert LatentCache(tmp_path, "x").get("a") is None


def test_errors(tmp_path):
    cache = LatentCache(tmp_path, "x")
    with pytest.raises(UserError, match="cache name 'a/b'"):
        cache.put("a/b", entry(1))
    with pytest.raises(UserError, match="has no tensors"):
        cache.put("a", {})
    (tmp_path / "file").write_text("")
    cache = LatentCache(tmp_path / "file", "x")
    cache.put("a", entry(1))
    with pytest.raises(UserError, match="cannot write"):
        cache.flush()
    assert cache.get("a") is not None


def test_a_batch_is_kept_whole(tmp_path):
    """A kill after any write leaves whole batches, so that the same ones are encoded again."""
    cache = LatentCache(tmp_path, "x", shard_entries=3)
    for batch in ("ab", "cd", "efg"):
        cache.put_batch({key: entry(ord(key)) for key in batch})
        on_disk = LatentCache(tmp_path, "x")
        there = "".join(key for key in "abcdefg" if key in on_disk)
        assert there in ("", "abcd", "abcdefg")
    assert len(shards(cache)) == 2
