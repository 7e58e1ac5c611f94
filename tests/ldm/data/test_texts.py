import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import LatentCache, cache_texts


def test_each_text_is_encoded_once(tmp_path):
    asked = []

    def encode(texts):
        asked.append(texts)
        return torch.stack([torch.full((7, 4), float(len(text))) for text in texts])

    texts = ["a", "bb", "a", "", "dddd"]
    seen = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    with LatentCache(tmp_path, "clip") as cache:
        contexts = cache_texts(texts, encode, cache, batch_size=3, progress=progress)
    assert asked == [["a", "bb", ""], ["dddd"]]
    assert seen == [(0, 4), (3, 4), (4, 4)]
    assert list(contexts) == ["a", "bb", "", "dddd"]
    assert contexts["bb"].shape == (7, 4)
    asked.clear()
    with LatentCache(tmp_path, "clip") as cache:
        again = cache_texts([*texts, "new"], encode, cache)
    assert asked == [["new"]]
    assert all(torch.equal(again[text], contexts[text]) for text in texts)


def test_wrong_encoders(tmp_path):
    cache = LatentCache(tmp_path, "clip")
    with pytest.raises(UserError, match=r"shape \(2,\) for 2 texts; expected \(texts, tokens"):
        cache_texts(["a", "b"], lambda texts: torch.zeros(2), cache)
    with pytest.raises(UserError, match="NaN or infinity for 'a'"):
        cache_texts(["a"], lambda texts: torch.full((1, 2, 3), float("inf")), cache)
    with pytest.raises(UserError, match="batch_size is 0"):
        cache_texts(["a"], lambda texts: torch.zeros(1, 2, 3), cache, batch_size=0)
