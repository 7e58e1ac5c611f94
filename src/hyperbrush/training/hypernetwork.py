"""Training an attention hypernetwork on a frozen model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.ldm.data import BatchOrder, ImageFolder, LatentCache, cache_latents, cache_texts
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.loading import from_pipeline
from hyperbrush.ldm.models.steps import update
from hyperbrush.ldm.util import keyed_generator, load_config
from hyperbrush.training.checkpoint import digest
from hyperbrush.training.config import OptimizerConfig, Share, Strict, TrainerConfig
from hyperbrush.training.ldm import Examples, make_batch, validation_losses
from hyperbrush.training.objectives import Objective
from hyperbrush.training.trainer import Progress, Trainer

if TYPE_CHECKING:
    from PIL.Image import Image


class HypernetworkObjective(Objective):
    """Denoising loss of a frozen model through an attached hypernetwork at strength 1.

    The model is no submodule: only the hypernetwork is moved, wrapped, averaged and saved.

    Args:
        model: frozen here.
        hypernetwork: what is trained.
        data, held_out: examples with "latent_mean" and "caption"; see `cached_examples`.
        texts: what the UNet is told of every caption and of the empty text, see `cached_examples`.
        target_layers: attn1, attn2 or both.
        prompts: of the preview, drawn with fixed seeds.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        hypernetwork: AttentionHypernetwork,
        data: Examples,
        texts: Mapping[str, Mapping[str, Tensor]],
        *,
        held_out: Examples | None = None,
        seed: int = 0,
        target_layers: Sequence[str] = ("attn1", "attn2"),
        weighting: str = "none",
        condition_dropout: float = 0.1,
        offset_noise: float = 0.0,
        perturbation: float = 0.0,
        timestep_sampling: str = "uniform",
        prompts: Sequence[str] = (),
        guidance_scale: float = 4.0,
    ) -> None:
        super().__init__()
        model.requires_grad_(False).eval()
        self._model = (model,)  # in a tuple, out of torch's sight
        self.hypernetwork = hypernetwork
        self.attached = attach(model.unet, [(hypernetwork, 1.0)], attn=tuple(target_layers))
        self.data, self.texts, self.held_out, self.seed = data, texts, held_out, seed
        self.weighting, self.dropout = weighting, condition_dropout
        self.prompts, self.guidance_scale = list(prompts), guidance_scale
        self.drawing: dict[str, Any] = {
            "offset_noise": offset_noise,
            "perturbation": perturbation,
            "timestep_sampling": timestep_sampling,
        }
        self.base_loss: float | None = None
        groups = getattr(data, "groups", None)
        self._groups: Any = len(data) if groups is None else groups
        self.order: BatchOrder | None = None

    @property
    def model(self) -> LatentDiffusion:
        """The frozen model."""
        return self._model[0]

    def place(self, device: torch.device) -> None:
        """Move the frozen model."""
        self.model.to(device)

    def close(self) -> None:
        """Detach: the model is as it was."""
        self.attached.detach()

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        """Latents and text states, with this step's noise and timesteps."""
        if self.order is None:
            self.order = BatchOrder(self._groups, batch_size, self.seed)
        batch = make_batch(self.data, self.order.pairs(step))
        generator = keyed_generator(self.seed, "noise", step)
        drawn = self.model.draw(
            tuple(batch["latent_means"].shape), generator, condition_dropout=self.dropout, **self.drawing
        )
        keep = drawn.pop("keep").tolist()
        captions = [c if k else "" for c, k in zip(batch["captions"], keep, strict=True)]
        told = [self.texts[caption] for caption in captions]
        return batch | drawn | {key: torch.stack([t[key] for t in told]) for key in told[0]}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The mean weighted loss."""
        return {"loss": self.model.losses(batch, weighting=self.weighting).mean()}

    def validate(self) -> dict[str, float]:
        """Loss over the fixed grid of the held-out pictures, and the model's own without the network."""
        if self.held_out is None:
            return {}
        if self.base_loss is None:
            self.attached.set_strengths([0.0])
            try:
                self.base_loss = float(validation_losses(self.model, self.held_out).mean())
            finally:
                self.attached.set_strengths([1.0])
        return {"loss": float(validation_losses(self.model, self.held_out).mean()), "base": self.base_loss}

    def preview(self) -> "Image | None":
        """One picture a prompt, fixed seeds."""
        from hyperbrush.ldm.pictures import grid, to_pictures

        if not self.prompts:
            return None
        made = self.model.sample(self.prompts, guidance_scale=self.guidance_scale, steps=15)
        return grid(to_pictures(made), columns=min(8, len(self.prompts)))

    def save(self, folder: Path) -> Path:
        """Write folder/NAME.safetensors."""
        return self.hypernetwork.save(folder / f"{self.hypernetwork.name}.safetensors")


class HypernetworkConfig(Strict):
    """Settings of `HypernetworkTrainer`, all with defaults."""

    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(16, ge=1, description="pictures per optimizer step, over all processes")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; else max_epochs")
    max_epochs: int = Field(20, ge=1, description="times each picture is seen")
    target_layers: list[str] = ["attn1", "attn2"]
    seed: int = Field(0, ge=0)
    schedule: str = Field("cosine", description="of the learning rate; see ldm.lr_scheduler")
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    ema_decay: float | None = Field(0.98, ge=0, lt=1)
    gradient_accumulation: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"
    flip: Share = Field(0.5, description="share of mirrored pictures")
    size: int | None = Field(
        None, ge=8, description="side of the pictures in pixels; the model's own by default"
    )
    validation_share: Share = Field(0.1, description="share of the pictures held out where none are given")
    validate_every: int = Field(25, ge=1)
    preview_every: int = Field(100, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    log_every: int = Field(5, ge=1)
    tensorboard: bool = False
    weighting: str = "none"
    condition_dropout: Share = 0.1
    offset_noise: float = Field(0.0, ge=0)
    perturbation: float = Field(0.0, ge=0)
    timestep_sampling: str = "uniform"
    prompts: list[str] = Field([], description="of the previews")

    def trainer(self, pictures: int) -> TrainerConfig:
        """The loop's share of the settings."""
        steps = self.max_steps or max(1, -(-pictures * self.max_epochs // self.batch_size))
        return load_config(
            TrainerConfig,
            {
                "steps": steps,
                "batch_size": self.batch_size,
                "gradient_accumulation": self.gradient_accumulation,
                "seed": self.seed,
                "ema_decay": self.ema_decay,
                "mixed_precision": self.mixed_precision,
                "validate_every": self.validate_every,
                "preview_every": self.preview_every,
                "checkpoint_every": self.checkpoint_every,
                "log_every": self.log_every,
                "tensorboard": self.tensorboard,
                "keep_best": True,
                "optimizer": OptimizerConfig(
                    learning_rate=self.learning_rate,
                    schedule=self.schedule,
                    warmup_steps=min(self.warmup_steps, steps // 2),
                    weight_decay=self.weight_decay,
                    max_grad_norm=self.max_grad_norm,
                ).model_dump(),
            },
        )


class HypernetworkTrainer:
    """Trains a hypernetwork on a folder or dataset; the model's weights never change.

    Args:
        hypernetwork: what is trained.
        config: settings of `HypernetworkConfig` as a mapping.
        run: folder of the run, runs/NAME by default.
        on_progress, should_stop: see `Trainer`.
    """

    def __init__(
        self,
        hypernetwork: AttentionHypernetwork,
        config: Mapping[str, Any] | HypernetworkConfig | None = None,
        *,
        run: str | Path | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.hypernetwork = hypernetwork
        self.config = (
            config
            if isinstance(config, HypernetworkConfig)
            else load_config(HypernetworkConfig, dict(config or {}))
        )
        self.run = Path(run) if run is not None else Path("runs") / hypernetwork.name
        self.on_progress, self.should_stop = on_progress, should_stop
        self.objective: HypernetworkObjective | None = None

    def train(
        self, model: Any, dataset: Any, validation: Any = None, *, resume: bool = False, at: int | None = None
    ) -> Path:
        """Train and return the file written.

        Args:
            model: a `LatentDiffusion` or a diffusers pipeline.
            dataset: a folder of captioned pictures, or a dataset with `example(index, epoch)`.
            validation: the same, held out; else `validation_share` of a folder's pictures.
            resume: go on from the run's newest checkpoint, or from the one ``at`` a step.

        Raises:
            UserError: see `Trainer.train`; and whatever is wrong with the folder.
        """
        from accelerate import PartialState

        opened = model if isinstance(model, LatentDiffusion) else from_pipeline(LatentDiffusion, model)
        opened.to(PartialState().device)  # caches are made where the training will be
        config, c = self.config, self.config
        size = config.size or opened.image_size
        train: ImageFolder | Subset = examples_of(dataset, size, config.flip, config.seed)
        held_out: ImageFolder | Subset | None = None
        if validation is not None:
            held_out = examples_of(validation, size, 0.0, config.seed)
        elif config.validation_share and len(train) >= 10:
            train, held_out = split(train, config.validation_share, config.seed)
        if config.gradient_checkpointing:
            opened.unet.enable_gradient_checkpointing()  # type: ignore[operator]
        cached, held, texts = cached_examples(opened, train, held_out, self.run / "cache")
        self.objective = HypernetworkObjective(
            opened,
            self.hypernetwork,
            cached,
            texts,
            held_out=held,
            seed=c.seed,
            target_layers=c.target_layers,
            weighting=c.weighting,
            condition_dropout=c.condition_dropout,
            offset_noise=c.offset_noise,
            perturbation=c.perturbation,
            timestep_sampling=c.timestep_sampling,
            prompts=c.prompts,
        )
        try:
            trainer = Trainer(
                self.objective,
                config.trainer(len(train)),
                self.run,
                on_progress=self.on_progress,
                should_stop=self.should_stop,
            )
            return trainer.train(resume=resume, at=at)
        finally:
            self.objective.close()
            self.hypernetwork.eval()


def examples_of(source: Any, size: int, flip: float, seed: int) -> ImageFolder:
    """An `ImageFolder` from a path; one already made passes through.

    Raises:
        UserError: neither a folder nor an `ImageFolder`.
    """
    if isinstance(source, str | Path):
        return ImageFolder(source, size=size, flip=flip, seed=seed)
    if not isinstance(source, ImageFolder):
        raise UserError(f"dataset: expected a folder or an ImageFolder, got {type(source).__name__}")
    return source


def split(data: "ImageFolder | Subset", share: float, seed: int) -> tuple["Subset", "Subset"]:
    """Two parts by a seeded choice, the second of ``share`` of the pictures and never mirrored."""
    order = torch.randperm(len(data), generator=keyed_generator(seed, "split")).tolist()
    held = max(1, round(share * len(data)))
    return Subset(data, sorted(order[held:])), Subset(data, sorted(order[:held]))


class Subset:
    """Some of a folder's pictures."""

    def __init__(self, data: Any, indices: Sequence[int]) -> None:
        self.data, self.indices = data, list(indices)
        self.captions = [data.captions[i] for i in self.indices]
        groups = getattr(data, "groups", None)
        self.groups = None if groups is None else [groups[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """The example of the whole."""
        found: dict[str, Any] = self.data.example(self.indices[index], epoch)
        return found


def cached_examples(
    model: LatentDiffusion,
    train: Any,
    held_out: Any,
    folder: Path,
) -> tuple[Examples, Examples | None, dict[str, dict[str, Tensor]]]:
    """Latents of all pictures and text states of all captions, encoded once and kept in ``folder``."""
    with LatentCache(folder / "latents", digest(dict(model.first_stage.state_dict()))) as cache:

        def latents(data: Any) -> Any:
            if isinstance(data, Subset):
                return Subset(latents(data.data), data.indices)
            return cache_latents(data, model.moments, cache)

        cached, held = latents(train), None if held_out is None else latents(held_out)
    captions = list(dict.fromkeys(["", *train.captions, *(held_out.captions if held_out else [])]))
    return cached, held, cached_texts(model, captions, folder / "texts")


def cached_texts(model: LatentDiffusion, captions: list[str], folder: Path) -> dict[str, dict[str, Tensor]]:
    """Each caption's "embeddings" (tokens, width), and for Stable Diffusion XL "pooled_embeddings"."""
    assert model.text_encoder is not None
    found: dict[str, dict[str, Tensor]] = {caption: {} for caption in captions}
    names = {"context": "embeddings", "pooled": "pooled_embeddings"}
    encoders = [e for e in (model.text_encoder, model.text_encoder_2) if e is not None]
    weights = {f"{i}.{k}": v for i, e in enumerate(encoders) for k, v in e.state_dict().items()}
    for key in ("context", "pooled")[: len(encoders)]:

        def encode(texts: list[str], key: str = key) -> Tensor:
            with torch.no_grad():
                return model.text_conditions(texts)[key]

        with LatentCache(folder / key, digest(weights)) as cache:
            for caption, states in cache_texts(captions, encode, cache).items():
                found[caption][names[key]] = states
    return found


def train_hypernetwork(
    model: LatentDiffusion,
    batch: Mapping[str, Any],
    hypernetwork: AttentionHypernetwork,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator | None = None,
    *,
    max_grad_norm: float | None = 1.0,
    **settings: Any,
) -> float:
    """One documented step for people with their own loop: only the hypernetwork learns.

    batch, settings: as for `LatentDiffusion.losses`; optimizer: over the hypernetwork's parameters.
    The network stays attached until backward has run, so that gradient checkpointing sees it too.
    Returns the loss.

    Raises:
        UserError: the loss is not finite; no parameter was changed.
    """
    model.requires_grad_(False)
    optimizer.zero_grad(set_to_none=True)
    with attach(model.unet, [(hypernetwork, 1.0)]):
        return update(model(batch, generator, **settings), optimizer, max_grad_norm)
