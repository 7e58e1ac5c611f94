"""First stages: a codebook's use, what no picture uses, perceptual and adaptive terms of the loss."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import ImageFolder
from hyperbrush.ldm.models import LatentDiffusion, first_stage
from hyperbrush.ldm.modules.codebook import perplexity, revive
from hyperbrush.ldm.modules.losses import FirstStageLoss, adaptive_weight
from hyperbrush.ldm.modules.perceptual import perceptual_loss
from hyperbrush.training import Trainer
from hyperbrush.training.ldm.config import read_config
from hyperbrush.training.ldm.first_stage import FirstStageObjective
from hyperbrush.training.ldm.run import build
from hyperbrush.training.loop import checkpoint as checkpoints
from hyperbrush.training.loop.metrics import read

TRAINING: dict[str, Any] = {
    "steps": 6,
    "batch_size": 4,
    "checkpoint_every": 2,
    "validate_every": 2,
    "log_every": 1,
}


def values(pictures: Path, **more: Any) -> dict[str, Any]:
    data = {"size": 32, "folders": [str(pictures)], "held_out": [str(pictures)]}
    return {
        "kind": "first_stage",
        "data": data,
        "model": {"channels": [8, 16], "type": "vq", "codebook": 32, "revive_every": 2},
        "training": TRAINING,
    } | more


def test_perplexity_is_the_number_of_entries_used_evenly() -> None:
    assert perplexity(torch.tensor([5.0, 5, 0, 0])) == pytest.approx(2)
    assert perplexity(torch.tensor([5.0, 5, 5, 5])) == pytest.approx(4)
    assert perplexity(torch.tensor([7.0, 0, 0, 0])) == pytest.approx(1)
    assert 1 < perplexity(torch.tensor([9.0, 1, 0, 0])) < 2


def test_unused_entries_become_latents_and_used_ones_stay() -> None:
    stage: Any = first_stage("vq", channels=(8, 16), codebook=8)
    weight = stage.quantize.embedding.weight
    with torch.no_grad():
        weight.fill_(100)
        weight[2], weight[5] = 0, 1
    latents = [torch.cat([torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 0.9)])]
    assert revive(stage.quantize, latents, torch.Generator().manual_seed(0)) == 6
    assert weight[2].tolist() == [0] * 4
    assert weight[5].tolist() == [1] * 4
    weight = weight.detach()
    rows = {round(float(row[0]), 3) for i, row in enumerate(weight) if i not in (2, 5)}
    assert rows == {0.0, 0.9}
    assert all(len(set(row.tolist())) == 1 for row in weight)


def test_a_dead_codebook_comes_alive_and_its_use_is_told(pictures: Path, tmp_path: Path) -> None:
    """As everything is far from every entry but one, one is used; revived, many are, and pictures gain."""
    used: dict[int, float] = {}
    for every in (0, 2):
        config = read_config(values(pictures))
        config.model.revive_every = every
        objective = build(config, tmp_path / str(every))
        with torch.no_grad():
            objective.model.quantize.embedding.weight[1:] += 1e3
        Trainer(objective, config.training, tmp_path / str(every)).train()
        rows = read(tmp_path / str(every) / "metrics.jsonl")
        last = [row for row in rows if "validation_loss" in row][-1]
        used[every] = last["validation_codebook_used"]
        assert 1 <= last["validation_perplexity"] <= 32 * used[every] + 1e-3
        assert all(0 < row["codebook_used"] <= 1 for row in rows if "codebook_used" in row)
        told = [row["message"] for row in rows if row.get("event") == "renewed"]
        if every == 0:
            assert not told
        else:
            assert told[0] == "31 of 32 entries of the codebook were used by no picture and begin anew"
    assert used[0] == pytest.approx(1 / 32)
    assert used[2] > 4 / 32


def test_a_resume_after_a_revival_is_exact(pictures: Path, tmp_path: Path) -> None:
    config = read_config(values(pictures))
    run = tmp_path / "run"

    def train(**how: Any) -> str:
        objective = build(config, run)
        Trainer(objective, config.training, run).train(**how)
        return checkpoints.digest(checkpoints.load(checkpoints.path_of(run / "checkpoints", 6)).tensors)

    whole = train()
    assert any(row.get("event") == "renewed" and row["step"] == 5 for row in read(run / "metrics.jsonl"))
    for at in (4, 4):  # a revival comes right after it
        checkpoints.path_of(run / "checkpoints", 6).unlink(missing_ok=True)
        assert train(resume=True, at=at) == whole


def test_a_kl_first_stage_has_no_codebook(pictures: Path, tmp_path: Path) -> None:
    objective = build(read_config(values(pictures, model={"channels": [8, 16], "revive_every": 1})), tmp_path)
    assert objective.before_step(1, 4) is None
    assert set(objective.validate()) == {"psnr", "loss"}
    assert "codebook_used" not in objective(objective.batch(0, 2))


def test_plain_diffusers_opens_its_folder(pictures: Path, tmp_path: Path) -> None:
    from diffusers import VQModel

    objective = build(read_config(values(pictures)), tmp_path)
    opened = VQModel.from_pretrained(objective.save(tmp_path), low_cpu_mem_usage=False)
    images = objective.batch(0, 2)["images"]
    with torch.no_grad():
        assert torch.equal(opened(images).sample, objective.model(images).sample)


@pytest.mark.parametrize(
    "settings",
    [{"first_stage": "vq"}, {"conditioning": "none"}, {"conditioning": "class", "num_classes": 2}],
    ids=str,
)
def test_pipelines_refuse_what_they_cannot_draw_with_and_say_why(
    settings: dict[str, Any], make_tiny: Any, tmp_path: Path
) -> None:
    """Opened, such a model failed in the last step of a picture, or drew something else."""
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    made = make_tiny(**settings)
    made.save_pretrained(tmp_path / "model")
    for cls in (StableDiffusionPipeline, DiffusionPipeline):
        with pytest.raises(
            UserError, match="no Stable Diffusion pipeline of diffusers draws with such: open"
        ):
            cls.from_pretrained(tmp_path / "model")
    again = LatentDiffusion.from_pretrained(tmp_path / "model")
    assert type(again.first_stage) is type(made.first_stage)
    assert again.conditioning == made.conditioning


def stage_objective(pictures: Path, **loss: Any) -> FirstStageObjective:
    torch.manual_seed(0)
    data = ImageFolder(pictures, size=32)
    model = first_stage("kl", channels=(8, 16), sample_size=32)
    return FirstStageObjective(model, FirstStageLoss(**loss), data, held_out=data)


def test_the_adaptive_weight_makes_the_gradients_alike(pictures: Path) -> None:
    """At the decoder's last layer, whatever the given weights; and it is told."""
    plain = stage_objective(pictures, adversarial_weight=1.0)
    adaptive = stage_objective(pictures, adversarial_weight=1.0, adversarial_adaptive=True)
    batch = plain.batch(0, 4)
    a, b = plain(batch), adaptive(batch)
    factor = b["adversarial_factor"]
    assert "adversarial_factor" not in a
    torch.testing.assert_close(b["adversarial"], a["adversarial"] * factor)
    assert factor > 0
    assert not torch.isclose(factor, torch.tensor(1.0))
    told = {"loss", "adversarial_factor"}
    torch.testing.assert_close(b["loss"], torch.stack([v for k, v in b.items() if k not in told]).sum())
    last = adaptive.model.decoder.conv_out.weight
    terms = adaptive(batch)
    rest = torch.autograd.grad(terms["l1"] + terms["mse"] + terms["gradient"], last, retain_graph=True)[
        0
    ].norm()
    adversarial = torch.autograd.grad(terms["adversarial"], last)[0].norm()
    assert float(adversarial / rest) == pytest.approx(1, rel=0.05)
    with torch.no_grad():
        assert "adversarial_factor" not in adaptive(batch)
    late = stage_objective(pictures, adversarial_weight=1.0, adversarial_adaptive=True, adversarial_start=5)
    assert "adversarial_factor" not in late(late.batch(0, 4))


def test_the_adaptive_weight_has_limits() -> None:
    last = torch.ones(3, requires_grad=True)
    assert adaptive_weight(last.sum() * 2, last.sum() * 4, last) == pytest.approx(0.5, rel=1e-3)
    assert adaptive_weight(last.sum() * 1e9, last.sum() * 0, last) == 1e4


class Distance(nn.Module):
    """In place of LPIPS: the mean difference of what a fixed filter sees."""

    def __init__(self, net: str = "alex", verbose: bool = True) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 4, 3)
        self.net = net

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.look(a) - self.look(b)).pow(2).flatten(1).mean(1)[:, None, None, None]


def fake(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    module = ModuleType("lpips")
    module.LPIPS = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)


def test_a_perceptual_loss_by_key(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, Distance)
    config = read_config(values(pictures, loss={"perceptual": 0.5, "perceptual_network": "squeeze"}))
    objective = build(config, tmp_path)
    assert objective.terms.perceptual.network.net == "squeeze"
    terms = objective(objective.batch(0, 4))
    assert terms["perceptual"] > 0
    assert not any("look" in name for name, _ in objective.named_parameters()), "frozen, and in no checkpoint"
    terms["perceptual"].backward()
    assert objective.model.encoder.conv_in.weight.grad.abs().sum() > 0
    objective.place(torch.device("meta"))
    assert objective.terms.perceptual.network.look.weight.device.type == "meta"
    without = build(read_config(values(pictures)), tmp_path)
    assert "perceptual" not in without(without.batch(0, 4))


def test_without_its_package_or_weights(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(
        UserError, match=r"needs the package lpips, .* pip install 'hyperbrush\[perceptual\]'"
    ):
        build(read_config(values(pictures, loss={"perceptual": 1.0})), tmp_path)

    def no_network(**_: Any) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    fake(monkeypatch, no_network)
    with pytest.raises(UserError, match=r"weights of LPIPS's network 'vgg' cannot be had .*checkpoints"):
        perceptual_loss()
    with pytest.raises(UserError, match="did you mean 'vgg'"):
        perceptual_loss("vg")


@pytest.mark.parametrize("network", ["alex", "vgg", "squeeze"])
def test_the_librarys_own_networks(
    network: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights drawn at random in place of torchvision's, found in its folder as a person brings them."""
    try:
        import lpips  # noqa: F401
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"the extra 'perceptual' is not there: {error}")

    makers = {
        "alex": (models.alexnet, models.AlexNet_Weights),
        "vgg": (models.vgg16, models.VGG16_Weights),
        "squeeze": (models.squeezenet1_1, models.SqueezeNet1_1_Weights),
    }
    make, weights = makers[network]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    torch.save(make(weights=None).state_dict(), folder / weights.IMAGENET1K_V1.url.rpartition("/")[2])
    distance = perceptual_loss(network)
    a = torch.rand(2, 3, 64, 64, requires_grad=True)
    assert float(distance(a, a)) == 0
    found = distance(a, a.detach().flip(0))
    assert found > 0
    found.backward()
    assert a.grad is not None
