"""The judge of pictures: trained on a handful it tells them apart; files, candidates, refusals."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hyperbrush.errors import UserError
from hyperbrush.picture_judge import PictureJudge

NAMES, SETS = ["disc", "square", "cross"], ["black", "white"]


def picture(name: str, look: str) -> torch.Tensor:
    """(3, 64, 64) in [-1, 1]."""
    y, x = torch.meshgrid(torch.arange(64) - 32, torch.arange(64) - 32, indexing="ij")
    shape = {
        "disc": x**2 + y**2 < 400,
        "square": (x.abs() < 20) & (y.abs() < 20),
        "cross": (x.abs() < 6) | (y.abs() < 6),
    }[name]
    made = torch.where(shape, -1.0, 1.0).expand(3, -1, -1)
    return made if look == "black" else -made


@pytest.fixture(scope="module")
def judge() -> PictureJudge:
    torch.manual_seed(0)
    made = PictureJudge(NAMES, SETS, channels=(8, 8, 16, 16), width=8)
    pictures = torch.stack([picture(n, s) for n in NAMES for s in SETS])
    name_ids, set_ids = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1] * 3)
    optimizer = torch.optim.AdamW(made.parameters(), 1e-2)
    for _ in range(40):
        names, sets = made(pictures)
        loss = F.cross_entropy(names, name_ids) + F.cross_entropy(sets, set_ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made.eval()


def test_it_says_what_pictures_show_and_how_they_look(judge: PictureJudge) -> None:
    pictures = torch.stack([picture(name, "white") for name in NAMES])
    assert judge.content(pictures, NAMES, NAMES).all()
    assert not judge.content(pictures, ["square", "cross", "disc"], NAMES).any()
    assert judge.content(pictures, ["square", "cross", "disc"], NAMES, best=3).all()
    assert judge.style(pictures, "white").all()
    assert not judge.style(pictures, "black").any()
    assert judge.style(pictures, "black", among=["black"]).all()


def test_fewer_candidates_are_easier(judge: PictureJudge) -> None:
    shown = picture("disc", "black")[None]
    assert not judge.content(shown, ["square"], NAMES).any()
    assert judge.content(shown, ["square"], ["square"]).all()


def test_a_file_gives_the_same_judge(judge: PictureJudge, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.safetensors", dtype=torch.float32)
    again = PictureJudge.load(tmp_path / "judge.safetensors")
    assert (again.names, again.sets) == (NAMES, SETS)
    pictures = torch.stack([picture(name, "black") for name in NAMES])
    with torch.no_grad():
        for one, other in zip(judge(pictures), again(pictures), strict=True):
            assert torch.equal(one, other)


def test_what_it_does_not_know_is_refused(judge: PictureJudge, tmp_path: Path) -> None:
    shown = picture("disc", "black")[None]
    with pytest.raises(UserError, match="'disc' is not among the 1 names"):
        judge.content(shown, ["disc"], ["cross"])
    with pytest.raises(UserError, match="no name 'cat'"):
        judge.content(shown, ["disc"], ["disc", "cat"])
    with pytest.raises(UserError, match="no set 'sepia'"):
        judge.style(shown, "sepia", among=["black", "sepia"])
    with pytest.raises(UserError, match=r"recipes/judge/train\.py"):
        PictureJudge.load(tmp_path / "none.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds no judge"):
        PictureJudge.load(tmp_path / "other.safetensors")


def test_pictures_that_are_not_numbers_show_nothing(judge: PictureJudge) -> None:
    broken = torch.full((1, 3, 64, 64), float("nan"))
    assert not judge.content(broken, ["square"], NAMES, best=len(NAMES)).any()
    with pytest.raises(UserError, match="is not among the 1 sets the judge chooses from"):
        judge.style(picture("disc", "black")[None], "white", among=["black"])
