"""The objective of an attention hypernetwork: denoising pictures of one style through it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.hypernetworks.generator import TunedWeights
from hyperbrush.ldm.data import BatchOrder, CaptionedExamples
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.conditioning import FORMS
from hyperbrush.ldm.models.pipelines import PipelineDiffusion
from hyperbrush.ldm.modules.diffusion import Loss
from hyperbrush.ldm.util import keyed_generator
from hyperbrush.training.attention.config import HypernetworkConfig
from hyperbrush.training.data.ahead import Ahead
from hyperbrush.training.data.cached import Texts, text_states
from hyperbrush.training.data.conditioned import check_wanted, shown_conditions
from hyperbrush.training.ldm.objectives import latent_shape, spread, validation_losses
from hyperbrush.training.loop.objectives import Objective, steps_added
from hyperbrush.training.report.contact_sheet import save_previews

# (model with the network attached, batch) → the loss to minimise, or several terms with "loss" among them.
Compute = Callable[[LatentDiffusion, Mapping[str, Any]], Tensor | Mapping[str, Tensor]]


class HypernetworkObjective(Objective):
    """Denoising loss of a frozen model through an attached hypernetwork at strength 1.

    The model is no submodule: only the hypernetwork is moved, wrapped, averaged and saved.

    Args:
        model: frozen here.
        hypernetwork: what is trained: an attention hypernetwork, or generated weights to be tuned.
        config: settings; of them, what concerns the loss, the draws and the previews.
        data, held_out: examples with "latent_mean" (or "image") and "caption", see `cached_latents` and `conditioned`.
        texts: what the UNet is told of every caption and of the empty text; None: encode in each step.
        loss: error of each element, (prediction, target) → the same shape; the config's by default.
        compute: the whole loss of a batch, in place of the denoising loss.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        hypernetwork: AttentionHypernetwork | TunedWeights,
        config: HypernetworkConfig,
        data: CaptionedExamples,
        *,
        held_out: CaptionedExamples | None = None,
        texts: Texts | None = None,
        loss: Loss | None = None,
        compute: Compute | None = None,
    ) -> None:
        super().__init__()
        check_wanted(model, config.prompts or [])
        model.requires_grad_(False).eval()
        self._model = (model,)  # in a tuple, out of torch's sight
        self.hypernetwork, self.config = hypernetwork, config
        acting = hypernetwork.weights if isinstance(hypernetwork, TunedWeights) else hypernetwork
        self.attached = attach(
            model.unet, [(acting, 1.0)], attn=tuple(config.target_layers), blocks=config.blocks
        )
        self.data, self.texts = data, texts
        self.ahead = Ahead()
        self.encodes = "image" in data.example(
            0, 0
        )  # pictures, or the masked ones of an inpainting model, in each step
        self.held_out = held_out and spread(held_out, config.validation_pictures)
        self.loss, self.compute = loss or config.loss, compute
        self.order = BatchOrder(data.groups, config.batch_size, config.seed)
        self.base_loss: float | None = None
        self.drawing = config.drawing(len(model.diffusion.schedule))
        if config.compile:
            model.unet.compile()

    @property
    def model(self) -> LatentDiffusion:
        """The frozen model."""
        return self._model[0]

    @property
    def _encoders(self) -> list[torch.nn.Module]:
        stage = [] if self.encodes else [self.model.first_stage]
        return [*stage, *self.model.text_encoders]

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
        batch = self.ahead.batch(self.data, self.order, step)
        generator = keyed_generator(self.config.seed, "noise", step)
        drawn = self.model.draw(
            latent_shape(self.model, batch, batch_size),
            generator,
            condition_dropout=self.config.condition_dropout,
            **self.drawing,
        )
        if self.model.conditioning != "text":
            return batch | drawn
        keep = drawn.pop("keep").tolist()
        captions = [c if k else "" for c, k in zip(batch["captions"], keep, strict=True)]
        batch |= drawn | {"captions": captions}
        return batch if self.texts is None else batch | self._text_states(captions)

    def _text_states(self, captions: Sequence[str]) -> dict[str, Tensor]:
        assert self.texts is not None
        if missing := [caption for caption in dict.fromkeys(captions) if caption not in self.texts]:
            with (
                torch.no_grad(),
                self._with_encoders(),
            ):  # of a finder, which goes beyond the training's steps
                found = self.model.text_conditions(missing)
            for number, caption in enumerate(missing):
                self.texts[caption] = {FORMS[key]: value[number].cpu() for key, value in found.items()}
        return text_states(self.texts, captions)

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
        states = None if self.texts is None else self._text_states
        return float(validation_losses(self.model, self.held_out, text_states=states).mean())

    def write_preview(self, run: Path, step: int) -> Path | None:
        """One picture a prompt, with fixed seeds, and with its settings inside."""
        from hyperbrush.ldm.pictures import to_pictures

        c = self.config
        names, conditions = shown_conditions(self.model, c.prompts, self.held_out or self.data, most=4)
        if not names:
            return None
        settings: dict[str, Any] = {
            "steps": c.preview_steps,
            "sampler": c.preview_sampler or self.model.usual_sampler,
            "guidance_scale": c.preview_guidance,
            "negative": c.preview_negative,
        }
        with self._with_encoders():
            seeds = [c.preview_seed + number for number in range(len(names))]
            made = to_pictures(
                self.model.sample(**conditions, **self._preview_size(), seeds=seeds, **settings)
            )
        return save_previews(run, step, made, names, seeds, **settings)

    def _preview_size(self) -> dict[str, Any]:
        """Pipelines draw as large as the training's pictures are, other models as they were made for."""
        size = self.config.size if isinstance(self.model, PipelineDiffusion) else None
        return {} if size is None else {"size": (size, size) if isinstance(size, int) else size}

    def save(self, folder: Path) -> Path:
        """Write folder/NAME.safetensors."""
        with steps_added(self.hypernetwork, self.step):
            return self.hypernetwork.save(folder / f"{self.hypernetwork.name}.safetensors")
