"""Training an attention hypernetwork on a frozen model."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.hypernetworks.formats.optimizer import OptimizerState, check_fits
from hyperbrush.ldm.data import BatchOrder, CaptionedExamples, ImageFolder, captions_seen
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.loading import from_pipeline
from hyperbrush.ldm.models.steps import update
from hyperbrush.ldm.modules.diffusion import Loss
from hyperbrush.ldm.util import keyed_generator, load_config
from hyperbrush.training.cached import FORMS, Texts, Told, cached_latents, cached_texts
from hyperbrush.training.contact_sheet import save_previews
from hyperbrush.training.hypernetwork_config import HypernetworkConfig
from hyperbrush.training.ldm import make_batch, validation_losses
from hyperbrush.training.objectives import Objective
from hyperbrush.training.optimizers import restore_moments
from hyperbrush.training.pictures import Pictures, hold_out, open_pictures
from hyperbrush.training.processes import join
from hyperbrush.training.trainer import OptimizerFactory, Progress, Trainer

log = logging.getLogger(__name__)

# (model with the network attached, batch) → the loss to minimise, or several terms with "loss" among them.
Compute = Callable[[LatentDiffusion, Mapping[str, Any]], Tensor | Mapping[str, Tensor]]


class HypernetworkObjective(Objective):
    """Denoising loss of a frozen model through an attached hypernetwork at strength 1.

    The model is no submodule: only the hypernetwork is moved, wrapped, averaged and saved.

    Args:
        model: frozen here.
        hypernetwork: what is trained.
        config: settings; of them, what concerns the loss, the draws and the previews.
        data, held_out: examples with "latent_mean" and "caption", see `cached_latents`.
        texts: what the UNet is told of every caption and of the empty text; None: encode in each step.
        loss: error of each element, (prediction, target) → the same shape; the config's by default.
        compute: the whole loss of a batch, in place of the denoising loss.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        hypernetwork: AttentionHypernetwork,
        config: HypernetworkConfig,
        data: CaptionedExamples,
        *,
        held_out: CaptionedExamples | None = None,
        texts: Texts | None = None,
        loss: Loss | None = None,
        compute: Compute | None = None,
    ) -> None:
        super().__init__()
        model.requires_grad_(False).eval()
        self._model = (model,)  # in a tuple, out of torch's sight
        self.hypernetwork, self.config = hypernetwork, config
        self.attached = attach(
            model.unet, [(hypernetwork, 1.0)], attn=tuple(config.target_layers), blocks=config.blocks
        )
        self.data, self.held_out, self.texts = data, held_out, texts
        self.loss, self.compute = loss or config.loss, compute
        self.order = BatchOrder(data.groups, config.batch_size, config.seed)
        self.base_loss: float | None = None
        self.drawing: dict[str, Any] = {
            "offset_noise": config.offset_noise,
            "perturbation": config.perturbation,
            "timestep_sampling": config.timestep_sampling,
            "timestep_range": _steps_of(config.timestep_range, len(model.diffusion.schedule)),
        }
        if config.compile:
            model.unet.compile()

    @property
    def model(self) -> LatentDiffusion:
        """The frozen model."""
        return self._model[0]

    @property
    def _encoders(self) -> list[torch.nn.Module]:
        m = self.model
        return [e for e in (m.first_stage, m.text_encoder, m.text_encoder_2) if e is not None]

    def place(self, device: torch.device) -> None:
        """Move the frozen model; encoders that have done their work stay in main memory."""
        self.model.to(device)
        if self.texts is not None:
            for encoder in self._encoders:
                encoder.to("cpu")

    @contextlib.contextmanager
    def _with_encoders(self) -> Iterator[None]:
        for encoder in self._encoders:
            encoder.to(self.model.device)
        try:
            yield
        finally:
            self.place(self.model.device)

    def close(self) -> None:
        """Detach: the model is as it was."""
        self.attached.detach()
        self.model.unet._compiled_call_impl = None  # what Module.compile sets
        self.model.to(self.model.device)

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        """Latents and text states, with this step's noise and timesteps."""
        if batch_size != self.order.batch_size:  # of a finder
            self.order = BatchOrder(self.data.groups, batch_size, self.config.seed)
        batch = make_batch(self.data, self.order.pairs(step))
        generator = keyed_generator(self.config.seed, "noise", step)
        drawn = self.model.draw(
            tuple(batch["latent_means"].shape),
            generator,
            condition_dropout=self.config.condition_dropout,
            **self.drawing,
        )
        keep = drawn.pop("keep").tolist()
        captions = [c if k else "" for c, k in zip(batch["captions"], keep, strict=True)]
        batch |= drawn | {"captions": captions}
        return batch if self.texts is None else batch | self._told(captions)

    def _told(self, captions: Sequence[str]) -> dict[str, Tensor]:
        assert self.texts is not None
        if missing := [caption for caption in dict.fromkeys(captions) if caption not in self.texts]:
            with (
                torch.no_grad(),
                self._with_encoders(),
            ):  # of a finder, which goes beyond the training's steps
                found = self.model.text_conditions(missing)
            for number, caption in enumerate(missing):
                self.texts[caption] = {FORMS[key]: value[number].cpu() for key, value in found.items()}
        told = [self.texts[caption] for caption in captions]
        return {key: torch.stack([t[key] for t in told]) for key in told[0]}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The mean weighted loss."""
        if self.compute is not None:
            found = self.compute(self.model, batch)
            return dict(found) if isinstance(found, Mapping) else {"loss": found}
        losses = self.model.losses(batch, weighting=self.config.weighting, loss=self.loss)
        if "weights" in batch:
            losses = losses * batch["weights"].to(losses.device)
        return {"loss": losses.mean()}

    def validate(self) -> dict[str, float]:
        """Loss over the fixed grid of the held-out pictures, and the model's own without the network."""
        if self.held_out is None:
            return {}
        if self.base_loss is None:
            self.attached.set_strengths([0.0])
            try:
                self.base_loss = self._validation_loss()
            finally:
                self.attached.set_strengths([1.0])
        return {"loss": self._validation_loss(), "base": self.base_loss}

    def _validation_loss(self) -> float:
        assert self.held_out is not None
        told = None if self.texts is None else self._told
        return float(validation_losses(self.model, self.held_out, told=told).mean())

    def write_preview(self, run: Path, step: int) -> Path | None:
        """One picture a prompt, with fixed seeds, and with its settings inside."""
        from hyperbrush.ldm.pictures import to_pictures

        c = self.config
        if not c.prompts:
            return None
        settings: dict[str, Any] = {
            "steps": c.preview_steps,
            "sampler": c.preview_sampler,
            "guidance_scale": c.preview_guidance,
            "negative": c.preview_negative,
        }
        with self._with_encoders():
            seeds = [c.preview_seed + number for number in range(len(c.prompts))]
            made = to_pictures(self.model.sample(c.prompts, seeds=seeds, **settings))
        return save_previews(run, step, made, c.prompts, seeds, **settings)

    def save(self, folder: Path) -> Path:
        """Write folder/NAME.safetensors."""
        return self.hypernetwork.save(folder / f"{self.hypernetwork.name}.safetensors")


class HypernetworkTrainer:
    """Trains a hypernetwork on pictures; the model's weights never change.

    Args:
        hypernetwork: what is trained.
        config: settings of `HypernetworkConfig` as a mapping.
        run: folder of the run, runs/NAME by default.
        loss, compute: a loss or a whole objective of one's own, see `HypernetworkObjective`.
        optimizer_factory: makes an optimizer of parameter groups, instead of the config's.
        optimizer_state: to begin with, such as `read_optimizer` finds beside a file.
        on_progress, should_stop: see `Trainer`.
        on_prepare: called with (what, done, in all) while pictures and captions are encoded.
    """

    def __init__(
        self,
        hypernetwork: AttentionHypernetwork,
        config: Mapping[str, Any] | HypernetworkConfig | None = None,
        *,
        run: str | Path | None = None,
        loss: Loss | None = None,
        compute: Compute | None = None,
        optimizer_factory: OptimizerFactory | None = None,
        optimizer_state: OptimizerState | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_prepare: Told | None = None,
    ) -> None:
        self.hypernetwork = hypernetwork
        self.config = (
            config
            if isinstance(config, HypernetworkConfig)
            else load_config(HypernetworkConfig, dict(config or {}))
        )
        if not self.config.trigger:  # [name] in templates is the network's, as in the webui
            self.config = self.config.model_copy(update={"trigger": hypernetwork.name})
        self.run = Path(run) if run is not None else Path("runs") / hypernetwork.name
        self.loss, self.compute = loss, compute
        self.optimizer_factory, self.optimizer_state = optimizer_factory, optimizer_state
        self.on_progress, self.should_stop, self.on_prepare = on_progress, should_stop, on_prepare
        self.optimizer: torch.optim.Optimizer | None = None  # after a training

    def train(
        self, model: Any, dataset: Any, validation: Any = None, *, resume: bool = False, at: int | None = None
    ) -> Path:
        """Train and return the file written.

        Args:
            model: a `LatentDiffusion` or a diffusers pipeline.
            dataset: a folder of captioned pictures, several, an `ImageFolder` or a `Mixture`.
            validation: the same, held out; else `validation_share` of the pictures.
            resume: go on from the run's newest checkpoint, or from the one ``at`` a step.

        Raises:
            UserError: see `Trainer.train`; and whatever is wrong with the pictures.
        """
        objective = self.objective(model, dataset, validation)
        try:
            trainer = Trainer(
                objective,
                self.config.trainer(len(objective.data)),
                self.run,
                on_progress=self.on_progress,
                should_stop=self.should_stop,
                optimizer_factory=self.optimizer_factory,
            )
            if self.optimizer_state is not None and not resume:
                check_fits(self.optimizer_state, self.hypernetwork)
                restore_moments(
                    trainer.optimizer, self.optimizer_state.optimizer_name, self.optimizer_state.state_dict
                )
            self.optimizer = trainer.optimizer
            return trainer.train(resume=resume, at=at)
        finally:
            objective.close()
            self.hypernetwork.eval()

    def optimizer_state_dict(self) -> tuple[str, dict[str, Any]]:
        """(torch's class, state) of the optimizer after a training, for `write_optimizer`."""
        assert self.optimizer is not None, "call train first"
        inner = getattr(self.optimizer, "optimizer", self.optimizer)  # Accelerate wraps it
        return type(inner).__name__, inner.state_dict()

    def objective(self, model: Any, dataset: Any, validation: Any = None) -> HypernetworkObjective:
        """Everything opened, encoded and attached, as `train` does it; call its ``close`` in the end.

        For the finders, and for loops of one's own.

        Raises:
            UserError: whatever is wrong with the pictures or the model.
        """
        from accelerate import PartialState

        c = self.config
        opened = model if isinstance(model, LatentDiffusion) else from_pipeline(LatentDiffusion, model)
        device = join()
        opened.to(device).requires_grad_(False).eval()
        train, held_out = pictures_of(opened, c, dataset, validation)
        if c.gradient_checkpointing:
            opened.unet.enable_gradient_checkpointing()  # type: ignore[operator]
        if c.channels_last:
            opened.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        order = BatchOrder(train.groups, c.batch_size, c.seed)
        captions = ["", *captions_seen(train, order, c.steps(len(train)))]
        if held_out is not None:
            captions += [held_out.caption(i, 0) for i in range(len(held_out))]
        cache = self.run / "cache"
        with PartialState().main_process_first():  # the others find all of it encoded
            texts = cached_texts(opened, captions, cache / "texts", self.on_prepare)
            data, held = cached_latents(
                opened,
                (train, held_out),
                cache / "latents",
                posterior=c.latent_sampling,
                told=self.on_prepare,
            )
        assert data is not None
        if texts is None:
            log.warning(
                "%d different captions are too many to keep: each is encoded in its step", len(captions)
            )
        return HypernetworkObjective(
            opened,
            self.hypernetwork,
            c,
            data,
            held_out=held,
            texts=texts,
            loss=self.loss,
            compute=self.compute,
        )


def pictures_of(
    model: LatentDiffusion, config: HypernetworkConfig, dataset: Any, validation: Any = None
) -> tuple[Pictures, Pictures | None]:
    """Training and held-out pictures for a model.

    Raises:
        UserError: see `open_pictures`.
    """
    about: dict[str, Any] = {
        "size": config.size or model.image_size,
        "downscale": model.image_size // model.latent_shape[1],
        "multiple": model.size_unit,
        "seed": config.seed,
    }
    data = open_pictures(dataset, config, **about)
    if validation is None:
        return hold_out(data, config.validation_share, config.seed)
    held = open_pictures(validation, config, **about)
    if isinstance(held, ImageFolder):
        return data, held.without_chance()
    return data, held.over(lambda one: one.without_chance() if isinstance(one, ImageFolder) else one)


def _steps_of(shares: tuple[float, float] | None, steps: int) -> tuple[int, int] | None:
    if shares is None:
        return None
    return math.floor(shares[0] * steps), max(math.floor(shares[0] * steps) + 1, math.ceil(shares[1] * steps))


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
