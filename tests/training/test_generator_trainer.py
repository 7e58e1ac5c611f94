"""`HypernetworkTrainer` and `train_hypernetwork` for a hypernetwork that generates weights, called from Python."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

import hyperbrush as hb
from hyperbrush.assets import style_folder
from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.files.optimizer import OptimizerState
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.training.generator.config import GeneratorConfig
from hyperbrush.training.generator.run import configured_generator

SMALL = {"embedding_dim": 32, "hidden_dim": 32, "rank": 2, "depth": 1, "heads": 4}
SHORT = {
    "prompts": [],
    "batch_size": 4,
    "shared_steps": 0,
    "references": 2,
    "log_every": 1,
    "validation_share": 0.0,
}


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained("emoji")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two styles of four pictures, without a word about either."""
    root = tmp_path_factory.mktemp("world")
    files = sorted((style_folder() / "train").glob("*.png"))
    for number, colour in enumerate(("#a03010", "#104a90")):
        folder = root / colour[1:]
        folder.mkdir()
        for path in files[number * 4 : number * 4 + 4]:
            with Image.open(path) as picture:
                ImageOps.colorize(picture.convert("L"), colour, "white").save(folder / path.name)
    return root


def make(emoji: LatentDiffusion, layers: tuple[str, ...] = ("attn2",), **settings) -> hb.Hypernetwork:
    torch.manual_seed(0)
    return hb.Hypernetwork(list(layers), target=hb.TargetNetwork(emoji), **(SMALL | settings))


def test_the_call_of_the_first_example(emoji, world: Path, tmp_path: Path) -> None:
    """With these numbers, on the sites of Stable Diffusion 1.5 until a model is there; then at a small size."""
    settings = {
        "learning_rate": 1e-4,
        "batch_size": 4,
        "max_epochs": 100,
        "target_layers": ["attn1", "attn2"],
    }
    net = hb.Hypernetwork(target_layers=["attn1", "attn2"], embedding_dim=768, hidden_dim=1024)
    config = hb.HypernetworkTrainer(net, config=settings).config
    assert isinstance(config, GeneratorConfig)
    assert (config.learning_rate, config.batch_size, config.steps(80)) == (1e-4, 4, 2000)

    torch.manual_seed(0)
    small = hb.Hypernetwork(target_layers=["attn1", "attn2"], **SMALL)
    trainer = hb.HypernetworkTrainer(small, config=settings | SHORT | {"max_epochs": 2}, run=tmp_path)
    written = trainer.train(emoji, world)
    rows = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert len(rows) == 4, "8 pictures twice, 4 a step"
    assert hb.Hypernetwork.load(written).layers == hb.TargetNetwork(emoji).layers


@pytest.mark.parametrize(
    ("own", "asked"),
    [(("attn2",), ["attn1", "attn2"]), (("attn1", "attn2"), ["attn2"]), (("to_k",), ["to_v"])],
)
def test_layers_of_the_training_are_those_of_the_net(emoji, own: tuple[str, ...], asked: list[str]) -> None:
    with pytest.raises(UserError, match="target_layers .*'hypernetwork'"):
        hb.HypernetworkTrainer(make(emoji, own), config={"target_layers": asked})


def test_wider_layers_than_the_nets_are_seen_with_the_model(emoji, world: Path, tmp_path: Path) -> None:
    trainer = hb.HypernetworkTrainer(
        make(emoji, ("attn2.to_k",)),
        config=SHORT | {"max_steps": 1, "target_layers": ["attn2"]},
        run=tmp_path,
    )
    with pytest.raises(UserError, match=r"target_layers \['attn2'\] mean .* leave target_layers out"):
        trainer.train(emoji, world)


def test_epochs_or_steps_and_not_both() -> None:
    assert GeneratorConfig().steps(80) == 2000
    with pytest.raises(UserError, match="max_steps 5 and max_epochs 2 both say how long"):
        configured_generator(name="x", data="y", settings=["max_steps=5", "max_epochs=2"])


def test_a_loss_and_an_objective_of_ones_own_are_obeyed(emoji, world: Path, tmp_path: Path) -> None:
    def seen(**given) -> dict[str, float]:
        trainer = hb.HypernetworkTrainer(make(emoji), config=SHORT, run=tmp_path, **given)
        objective = trainer.objective(emoji, world)
        found = {key: float(value.detach()) for key, value in objective(objective.batch(0, 4)).items()}
        objective.close()
        return found

    usual = seen()["loss"]
    assert seen(loss=lambda a, b: 3 * (a - b) ** 2)["loss"] == pytest.approx(3 * usual, rel=1e-5)

    def compute(model, batch):
        assert model is emoji
        assert len(batch["latents"]) == 4
        return {"loss": model(batch) * 0 + 7.0, "own": torch.tensor(2.0)}

    assert seen(compute=compute) == {"loss": 7.0, "denoising": 7.0, "own": 2.0}
    assert seen(compute=lambda model, batch: 2 * model(batch))["loss"] == pytest.approx(2 * usual, rel=1e-5)
    with pytest.raises(UserError, match="expected the loss, or terms with 'loss'"):
        seen(compute=lambda model, batch: {"own": model(batch)})


def test_what_this_training_cannot_do_is_refused(emoji, world: Path, tmp_path: Path) -> None:
    def begin(net: hb.Hypernetwork, config: dict | None = None, **given) -> None:
        hb.HypernetworkTrainer(net, config=SHORT | (config or {}), run=tmp_path, **given).train(emoji, world)

    with pytest.raises(UserError, match="compute is of what is drawn, and objective 'reconstruction'"):
        from hyperbrush.training.generator.objective import GeneratorObjective

        GeneratorObjective(
            emoji,
            make(emoji),
            GeneratorConfig(objective="reconstruction"),
            [],
            compute=lambda model, batch: model(batch),
        )
    with pytest.raises(UserError, match="looks at pictures through a vision model too"):
        begin(make(emoji, image_width=12))
    with pytest.raises(
        UserError, match=r"text_share 0\.5 .* none of the 2 styles has any: write a style\.txt"
    ):
        begin(make(emoji), {"text_share": 0.5})
    assert not (tmp_path / "cache").exists(), "said before anything is encoded"
    with pytest.raises(UserError, match="leave optimizer_state out"):
        begin(make(emoji), optimizer_state=OptimizerState("Adam", {}, None))


def changed(net: hb.Hypernetwork, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())


def state(net: hb.Hypernetwork) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_one_step_generates_applies_and_learns(emoji) -> None:
    net = make(emoji, tasks=["ink", "sea"])
    batch = {"images": torch.rand(2, 3, 64, 64) * 2 - 1, "captions": ["a", "b"]}
    before, model_before = state(net), {n: p.clone() for n, p in emoji.named_parameters()}
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def step(**more) -> float:
        return hb.train_hypernetwork(
            emoji, batch | more, net, optimizer, torch.Generator().manual_seed(0), condition_dropout=0.0
        )

    first = step()
    assert first == pytest.approx(
        float(emoji(batch, torch.Generator().manual_seed(0), condition_dropout=0.0)), rel=1e-4
    ), "it begins by changing nothing"
    assert changed(net, before)
    assert min(step() for _ in range(5)) < first
    assert net.learned == ("pictures",)
    task = net.encoder.task.weight.detach().clone()
    for _ in range(3):
        step(condition=hb.TaskCondition("ink"))
    moved = (net.encoder.task.weight != task).any(1).tolist()
    assert moved == [True, False], "a task's own token learns"
    assert net.learned == ("pictures", "task ink")
    with pytest.raises(UserError, match="its task sea, which no training has touched"):
        net.generate_weights(hb.TaskCondition("sea"))
    assert all(torch.equal(p, model_before[n]) for n, p in emoji.named_parameters())
    with pytest.raises(UserError, match="for 3 samples and the batch has 2 pictures"):
        step(condition=["a", "b", "c"])
    assert net.learned == ("pictures", "task ink"), "a step that failed taught nothing"


def test_one_step_with_nothing_but_net_and_batch_leaves_the_gradients(emoji) -> None:
    net = make(emoji)
    batch = {"images": torch.rand(2, 3, 64, 64) * 2 - 1, "captions": ["a", "b"]}
    before = state(net)
    loss = hb.train_hypernetwork(net, batch)
    assert loss > 0
    assert not changed(net, before)
    assert any(p.grad is not None and p.grad.any() for p in net.parameters())
    assert net.target_network.layers == net.layers


def test_one_step_says_what_is_missing(emoji) -> None:
    batch = {"images": torch.rand(1, 3, 64, 64), "captions": ["a"]}
    with pytest.raises(UserError, match="which hypernetwork learns"):
        hb.train_hypernetwork(emoji, batch)
    free = hb.Hypernetwork(["attn2"], **SMALL)
    with pytest.raises(UserError, match="bound to no model yet"):
        hb.train_hypernetwork(free, batch)
    with pytest.raises(UserError, match="bound to no model yet"):
        hb.train_hypernetwork(emoji, batch, free)
    other = make(LatentDiffusion.from_pretrained("emoji"))
    with pytest.raises(UserError, match="bound to another model"):
        hb.train_hypernetwork(emoji, batch, other)
    with pytest.raises(UserError, match="two hypernetworks were given"):
        hb.train_hypernetwork(other, batch, free)


def test_one_step_of_generated_weights_that_are_tuned(emoji) -> None:
    from hyperbrush.hypernetworks.generator import TunedWeights

    tuned = TunedWeights(make(emoji).generate_weights(None))
    batch = {"images": torch.rand(1, 3, 64, 64) * 2 - 1, "captions": ["a"]}
    before = [p.detach().clone() for p in tuned.parameters()]
    hb.train_hypernetwork(emoji, batch, tuned, torch.optim.SGD(tuned.parameters(), lr=0.1))
    assert any(not torch.equal(p, old) for p, old in zip(tuned.parameters(), before, strict=True))


def test_a_task_that_no_training_touched_is_refused(emoji, world: Path, tmp_path: Path) -> None:
    from hyperbrush.hypernetworks.generator.generating import generate_adapter

    net = make(emoji, tasks=["ink"])
    hb.HypernetworkTrainer(net, config=SHORT | {"max_steps": 1}, run=tmp_path).train(emoji, world)
    with pytest.raises(UserError, match="trained on pictures alone and does not know its task ink"):
        generate_adapter(net, task="ink")
    with pytest.raises(UserError, match="unknown task 'sea'"):
        generate_adapter(net, task="sea")
