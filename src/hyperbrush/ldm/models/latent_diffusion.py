"""The whole model: first stage, UNet and process, text encoder and tokenizer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError
from hyperbrush.ldm.models import autoencoder, text
from hyperbrush.ldm.models.conditioning import (
    check_kind,
    conditions,
    label_of,
    latents_of,
    mark_textless,
    moved,
    text_conditions,
    unconditional_batch,
)
from hyperbrush.ldm.models.diffusion_model import (
    DiffusionModel,
    build_unet,
    schedule_of,
    scheduler_config,
)
from hyperbrush.ldm.models.inpainting import check_batch, reads_masks
from hyperbrush.ldm.models.transformer import check_denoiser, halvings
from hyperbrush.ldm.modules import flow
from hyperbrush.ldm.modules.diffusion import Loss
from hyperbrush.ldm.sampling import pictures as drawing
from hyperbrush.ldm.sampling.names import usual_sampler
from hyperbrush.ldm.sampling.samplers import make_scheduler


class LatentDiffusion(nn.Module):
    """A latent diffusion model (Rombach et al. 2022): ``LatentDiffusion(latent_dim=4,
    attention_resolutions=[8, 16, 32], num_heads=8)`` is complete as it stands.

    The parts are diffusers' and transformers' own classes; each can be passed ready-made.

    Args:
        latent_dim: channels of the latents.
        attention_resolutions: sides of the latent map at which the UNet attends. With the default
            pictures of 512 pixels and four levels the maps are 64, 32, 16 and 8 wide, so [8, 16, 32]
            leaves only the first level plain. (In CompVis the same list counts downsampling factors;
            the default model reads alike under both.)
        num_heads: attention heads at every level of the UNet.
        image_size: side of the pictures in pixels.
        channels: widths of the UNet's levels.
        first_stage_channels: widths of the first stage's levels; each after the first halves the map.
        first_stage: "kl", "vq", or a ready module.
        conditioning: "text" (cross-attention), "none", "class" (needs `num_classes` or `class_names`) or "image"
            (a picture of `image_channels` channels joined to the latents).
        class_names: what the labels 0, 1, … stand for.
        text_width, text_layers: of a fresh text encoder.
        schedule, prediction, zero_terminal_snr: the process; see `ldm.modules.diffusion`. schedule: a name, the betas of
            all steps, or a function of the share of the process, 0 to 1, to the signal's share of the variance.
        shift: of a rectified flow, which prediction "flow_prediction" takes in the schedule's place; see
            `ldm.modules.flow.shifted`.
        dropout: of the UNet, while it is trained.
        scale_factor: latents are multiplied by it before diffusion; see `measure_scale`.
        unet, text_encoder, tokenizer: ready parts; the default tokenizer is the embedded model's. unet: also a
            transformer, of `transformer.build_transformer`.
    """

    scheduler: Any = None  # diffusers' scheduler, while `sample` runs

    def __init__(
        self,
        latent_dim: int = 4,
        attention_resolutions: Sequence[int] = (8, 16, 32),
        num_heads: int = 8,
        *,
        image_size: int = 512,
        channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        first_stage_channels: Sequence[int] = (64, 128, 256, 256),
        first_stage: str | nn.Module = "kl",
        conditioning: str = "text",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        image_channels: int = 4,
        text_width: int = 256,
        text_layers: int = 4,
        schedule: str | Sequence[float] | Callable[[float], float] = "scaled_linear",
        train_timesteps: int = 1000,
        prediction: str = "v_prediction",
        zero_terminal_snr: bool = False,
        shift: float = 1.0,
        scale_factor: float = 1.0,
        dropout: float = 0.0,
        unet: nn.Module | None = None,
        text_encoder: nn.Module | None = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        num_classes = check_kind(conditioning, num_classes, class_names)
        if isinstance(first_stage, str):
            first_stage = autoencoder.first_stage(
                first_stage, latent_dim=latent_dim, channels=first_stage_channels, sample_size=image_size
            )
        if conditioning == "text" and text_encoder is None:
            tokenizer = tokenizer if tokenizer is not None else text.default_tokenizer()
            text_encoder = text.build_text_encoder(tokenizer, width=text_width, layers=text_layers)
        if unet is None:
            unet = build_unet(
                latent_dim=latent_dim,
                sample_size=image_size // autoencoder.downsampling(first_stage),
                channels=channels,
                attention_resolutions=attention_resolutions,
                num_heads=num_heads,
                layers_per_block=layers_per_block,
                dropout=dropout,
                context_dim=text.width_of(text_encoder),
                # One label more than asked for: the last one means "no label".
                num_classes=num_classes + 1 if num_classes else None,
                extra_channels=image_channels if conditioning == "image" else 0,
            )
        process = scheduler_config(schedule, train_timesteps, prediction, zero_terminal_snr, shift)
        self._put_together(first_stage, unet, text_encoder, tokenizer, process, conditioning, class_names)
        self.scale_factor = scale_factor

    @classmethod
    def of_parts(cls, *parts: Any) -> "LatentDiffusion":
        """A model of ready parts, without drawing any weights.

        parts: first stage, UNet, text encoder and tokenizer (or None), diffusers' settings of the process, the kind of
            conditioning, and the names of classes where there are some.
        """
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._put_together(*parts)
        return model

    def _put_together(
        self,
        first_stage: nn.Module,
        unet: nn.Module,
        text_encoder: nn.Module | None,
        tokenizer: Any,
        process: dict[str, Any],
        conditioning: str,
        class_names: Sequence[str] | None = None,
    ) -> None:
        check_denoiser(unet, conditioning)
        self.conditioning = conditioning
        # While guidance is sampled: its sides, the unconditional one first in the batch.
        self.rows_per_picture: int | None = None
        self.class_names = None if class_names is None else list(class_names)
        self.first_stage = first_stage
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.text_encoder_2: nn.Module | None = None  # Stable Diffusion XL's second one
        self.tokenizer_2: Any = None
        self.zero_empty_text = False
        process = flow.process_config(process)
        prediction = process.get("prediction_type", "epsilon")
        self.diffusion = DiffusionModel(
            unet, schedule_of(process), prediction, process, autoencoder.downsampling(first_stage)
        )
        mark_textless(unet, conditioning)
        self.known_words: frozenset[str] | None = None  # of the captions it was trained on, if known

    @property
    def unet(self) -> nn.Module:
        """The denoising network: a UNet, or a transformer in its place (see `ldm.models.transformer`)."""
        return self.diffusion.unet

    @property
    def encoder(self) -> nn.Module:
        """The first stage's encoder; its ``encode(images)`` gives the scaled latents, as `encode` of the model does."""
        found: nn.Module = self.first_stage.encoder  # type: ignore[assignment]
        found.encode = autoencoder.EncodeMethod(self.first_stage)  # type: ignore[assignment]
        return found

    @property
    def inpaints(self) -> bool:
        """Whether the UNet reads a mask and the masked picture beside the latents; see `inpainting.masked_input`."""
        return self.conditioning == "text" and reads_masks(self.unet)

    @property
    def text_encoders(self) -> list[nn.Module]:
        """Those there are, in order."""
        return [e for e in (self.text_encoder, self.text_encoder_2) if e is not None]

    @property
    def downsampling(self) -> int:
        """Pixels of a latent's side."""
        return autoencoder.downsampling(self.first_stage)

    @property
    def usual_sampler(self) -> str:
        """The sampler that draws where none is named."""
        return usual_sampler(self.diffusion.prediction)

    def check_drawing(self, sampler: str = "", negative: str = "") -> None:
        """Refuse, before anything is drawn, what the model cannot draw with; "": not asked for.

        Raises:
            UserError: an unknown sampler, or one of another kind of process.
        """
        if sampler:
            make_scheduler(sampler, self.diffusion.scheduler_config)

    @property
    def device(self) -> torch.device:
        """Where the UNet lives."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's precision."""
        return next(self.unet.parameters()).dtype

    @property
    def scale_factor(self) -> float:
        """Number the first stage's latents are multiplied by; kept in the first stage's config."""
        return float(self.first_stage.config.scaling_factor)  # type: ignore[union-attr, arg-type]

    @scale_factor.setter
    def scale_factor(self, value: float) -> None:
        self.first_stage.register_to_config(scaling_factor=float(value))  # type: ignore[operator]

    @property
    def shift_factor(self) -> float:
        """Number taken from the latents before they are scaled (0 for most models)."""
        return autoencoder.shift_of(self.first_stage)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one picture's latents at the model's own size."""
        config: Any = self.unet.config
        side = config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        return config.out_channels, height, width

    @property
    def image_size(self) -> int:
        """Side of the pictures the model was made for, in pixels."""
        return self.latent_shape[1] * self.downsampling

    @property
    def size_unit(self) -> int:
        """What both sides of a picture must be multiples of, in pixels: see `transformer.halvings`."""
        return int(self.downsampling * halvings(self.unet))

    @torch.no_grad()
    def moments(self, images: Tensor) -> dict[str, Tensor]:
        """Unscaled "mean" and "std" of pictures' latents, for caches; images: (batch, 3, H, W)."""
        return autoencoder.moments(self.first_stage, images.to(self.device))

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents (batch, c, h, w) of pictures (batch, 3, H, W) in [-1, 1].

        Without a generator the posterior's mean, else a sample drawn from it.
        """
        return autoencoder.encode(self.first_stage, images, generator)

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Tensor:
        """Pictures (batch, 3, H, W), about [-1, 1], of scaled latents (batch, c, h, w).

        ``tiled`` decodes overlapping tiles one by one, for pictures that do not fit in memory.
        """
        return autoencoder.decode(self.first_stage, latents, tiled=tiled)

    @torch.no_grad()
    def measure_scale(self, images: Tensor | Iterable[Tensor]) -> float:
        """Set and return the scale factor 1 / std of these pictures' latents (Rombach et al. 2022, G).

        images: (batch, 3, H, W), or several of such batches, which are encoded one after another.
        """
        batches = torch.split(images, 32) if isinstance(images, Tensor) else images
        means = [self.moments(batch)["mean"].float().cpu().flatten() for batch in batches]
        std = float(torch.cat(means).std())
        if not std > 0:
            raise UserError(
                "the latents do not vary, so that no scale factor can be measured; give more pictures"
            )
        self.scale_factor = 1 / std
        return self.scale_factor

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Text states (batch, tokens, width) for cross-attention.

        Raises:
            UserError: the model has no text encoder.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise UserError(f"this model is conditioned by {self.conditioning!r} and reads no captions")
        ids = text.tokenize(self.tokenizer, captions).to(next(self.text_encoder.parameters()).device)
        return text.encode_text(self.text_encoder, ids)

    def text_conditions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the UNet is told of captions: "context", and for Stable Diffusion XL "pooled" too."""
        return text_conditions(self, captions)

    def latents_of(self, batch: Mapping[str, Any], generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents of a batch: `latents` as they are, else `latent_means` (and `latent_stds`) of
        a cache, else `images` encoded.

        Raises:
            UserError: the batch holds none of them.
        """
        return latents_of(self, batch, generator)

    def conditions(self, batch: Mapping[str, Any], keep: Tensor | None = None) -> dict[str, Tensor]:
        """Keyword arguments for `diffusion` out of a batch: see `ldm.models.conditioning.conditions`."""
        return conditions(self, batch, keep)

    def label_of(self, name: str) -> int:
        """A class's label, by its name or by its number as text.

        Raises:
            UserError: the model has no such class, or knows none.
        """
        return label_of(self, name)

    @property
    def null_label(self) -> int:
        """The class label that means none."""
        return int(self.unet.config.num_class_embeds) - 1  # type: ignore[union-attr, arg-type]

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, **settings: Any) -> dict[str, Tensor]:
        """All randomness of one training step for latents (batch, c, h, w): see `DiffusionModel.draw`."""
        return self.diffusion.draw(shape, generator, **settings)

    def losses(
        self,
        batch: Mapping[str, Any],
        generator: torch.Generator | None = None,
        *,
        weighting: str = "none",
        loss: str | Loss = "mse",
        **drawing: Any,
    ) -> Tensor:
        """Denoising loss of each picture of a batch, (batch,) float32.

        batch: `images` (batch, 3, H, W) or `latents` or `latent_means`; `captions` or `embeddings` (or
        the key of another conditioning, see `conditions`); of an inpainting model `images` always and `inpaint_masks`
        (batch, 1, H, W), 1 where they are drawn anew; optionally `masks` (batch, 1, h, w); and
        optionally what `draw` returns, else it is drawn here from ``generator`` (the global one if
        None) with the settings in ``drawing``. weighting, loss: see `DiffusionModel.losses`.
        """
        generator = generator or torch.default_generator
        if self.inpaints:
            check_batch(self, batch)
        latents = self.latents_of(batch, generator if batch.get("sample_latents") else None)
        drawn = batch if "noise" in batch else self.draw(tuple(latents.shape), generator, **drawing)
        noise, timesteps = moved(self, drawn["noise"]), moved(self, drawn["timesteps"])
        perturbed = drawn.get("perturbed")
        masks = batch.get("masks")
        return self.diffusion.losses(
            latents,
            noise.to(latents.dtype),
            timesteps,
            weighting=weighting,
            loss=loss,
            perturbation=None if perturbed is None else moved(self, perturbed).to(latents.dtype),
            mask=None if masks is None else moved(self, masks),
            **self.conditions(batch, drawn.get("keep")),
        )

    def forward(
        self, batch: Mapping[str, Any] | Tensor, generator: torch.Generator | None = None, **settings: Any
    ) -> Tensor:
        """Mean denoising loss of a batch, a scalar; arguments as in `losses`.

        batch: or pictures alone, (batch, 3, H, W) in [-1, 1]: they are told no condition (the empty text, the label that
            means none).

        Raises:
            UserError: a tensor of another shape, or a model conditioned by pictures, which must be in the batch.
        """
        if isinstance(batch, Tensor):
            batch = unconditional_batch(self, batch)
            if self.conditioning == "class":
                settings = settings | {"condition_dropout": 1.0}
        return self.losses(batch, generator, **settings).mean()

    @torch.no_grad()
    def sample(
        self,
        captions: str | Sequence[str] | None = None,
        *,
        count: int | None = None,
        seeds: Sequence[int] | None = None,
        steps: int = 25,
        sampler: str | None = None,
        guidance_scale: float = 4.0,
        negative: str | Sequence[str] = "",
        class_labels: Tensor | Sequence[int | str] | None = None,
        condition_images: Tensor | None = None,
        embeddings: Tensor | None = None,
        negative_embeddings: Tensor | None = None,
        pooled_embeddings: Tensor | None = None,
        negative_pooled_embeddings: Tensor | None = None,
        image: Tensor | None = None,
        image_strength: float = 0.75,
        mask: Tensor | None = None,
        size: tuple[int, int] | None = None,
        discretisation: str = "diffusers",
        output: str = "images",
        on_step: Callable[[int, int, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw pictures (batch, 3, H, W) in [0, 1], or their scaled latents with ``output="latents"``.

        While it runs, the diffusers scheduler at work is `self.scheduler`.

        Args:
            captions, class_labels, condition_images: the condition, one per picture; a single text
                is one picture. class_labels: numbers, or names of `class_names`.
            embeddings: text states (batch, tokens, width) in place of captions.
            negative_embeddings: those of the negative texts, in place of `negative`; the two may differ
                in length (`text.same_length`).
            pooled_embeddings, negative_pooled_embeddings: (batch, projection), with embeddings for
                Stable Diffusion XL.
            count: number of pictures where there is no condition.
            seeds: one per picture, 0, 1, … by default; equal seeds give equal pictures in any batch.
            steps, sampler, discretisation: see `ldm.sampling`; sampler: by default the usual one (`names.usual_sampler`).
            guidance_scale: classifier-free guidance (Ho & Salimans 2022); 1 is none.
            negative: what guidance moves away from, one text or one per picture.
            image: (batch, 3, H, W) in [0, 1], pictures to start from.
            image_strength: with `image`, the share of the steps that is run; 1 keeps next to nothing.
            mask: with `image`, (batch, 1, H, W): 1 where it is drawn anew, 0 where it is kept, shares between.  An
                inpainting model is told of both, as in diffusers' StableDiffusionInpaintPipeline; without a mask it
                draws all of the picture anew, as in the webui.
            size: (height, width) in pixels, the image's or the model's own by default.
            on_step: called with (step, steps, latents).

        Raises:
            UserError: unknown sampler; a size the model cannot make; lengths that disagree; a condition
                this model does not read.
        """
        if class_labels is not None and not isinstance(class_labels, Tensor):
            class_labels = torch.tensor([self.label_of(str(one)) for one in class_labels])
        condition = {
            "captions": [captions] if isinstance(captions, str) else captions,
            "class_labels": class_labels,
            "condition_images": condition_images,
            "embeddings": embeddings,
            "pooled_embeddings": pooled_embeddings,
        }
        null = {
            "captions": negative,
            "embeddings": negative_embeddings,
            "pooled_embeddings": negative_pooled_embeddings,
        }
        return drawing.draw_pictures(
            self,
            {k: v for k, v in condition.items() if v is not None},
            {k: v for k, v in null.items() if v is not None},
            count=count,
            seeds=seeds,
            steps=steps,
            sampler=sampler,
            guidance_scale=guidance_scale,
            image=image,
            image_strength=image_strength,
            mask=mask,
            size=size,
            discretisation=discretisation,
            output=output,
            on_step=on_step,
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, **settings: Any) -> "LatentDiffusion":
        """Open "emoji" (embedded), a diffusers folder, a single-file checkpoint or a hub id."""
        from hyperbrush.ldm.models.loading import from_pretrained

        return from_pretrained(cls, source, **settings)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that plain `DiffusionPipeline.from_pretrained` opens (text models)."""
        from hyperbrush.ldm.models.loading import save_pretrained

        save_pretrained(self, folder, dtype)

    def pipeline(self) -> Any:
        """The same parts as a diffusers `StableDiffusionPipeline`, or with a transformer `PixArtSigmaPipeline`."""
        from hyperbrush.ldm.models.loading import pipeline

        return pipeline(self)


def train_step(
    model: LatentDiffusion,
    batch: Mapping[str, Any] | Tensor,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator | None = None,
    *,
    max_grad_norm: float | None = 1.0,
    **settings: Any,
) -> float:
    """One documented step for people with their own loop: loss, gradient, clip, update.

    Returns the loss.  ``settings`` go to `LatentDiffusion.losses` (weighting, condition_dropout, …).

    Raises:
        UserError: the loss is not finite; no parameter was changed.
    """
    optimizer.zero_grad(set_to_none=True)
    return update(model(batch, generator, **settings), optimizer, max_grad_norm)


def update(loss: Tensor, optimizer: torch.optim.Optimizer | None, max_grad_norm: float | None) -> float:
    """Gradient, clip, optimizer step (without an optimizer the gradient alone); returns the loss.

    Raises:
        UserError: the loss is not finite; no parameter was changed.
    """
    if not torch.isfinite(loss):
        raise UserError(
            f"the loss is {loss.item()}: lower the learning rate, or look at this batch's pictures"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    if optimizer is None:
        return float(loss.detach())
    if max_grad_norm is not None:
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, max_grad_norm)
    optimizer.step()
    return float(loss.detach())
