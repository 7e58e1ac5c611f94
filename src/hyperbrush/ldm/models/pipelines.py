"""Diffusion transformers in their own diffusers pipelines, where trainings expect a `LatentDiffusion`."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError
from hyperbrush.files import read_json
from hyperbrush.ldm.models import loading
from hyperbrush.ldm.models.conditioning import FORMS, moved, stacked
from hyperbrush.ldm.models.diffusion_model import DiffusionModel, schedule_of
from hyperbrush.ldm.models.latent_diffusion import LatentDiffusion
from hyperbrush.ldm.models.pipeline_families import FAMILIES, PipelineFamily, scaled_moments
from hyperbrush.ldm.modules import flow

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
USUAL_SIDE = 1024  # pixels, of Z-Image, whose pipeline does not say
_TEXT_WIDTHS = ("caption_channels", "joint_attention_dim", "cap_feat_dim")  # names of a transformer's setting


class PipelineDenoiser(DiffusionModel):
    """A pipeline's transformer and the process it was trained on."""

    def __init__(self, pipe: Any, family: PipelineFamily) -> None:
        scheduler = pipe.scheduler
        process = flow.trained_process(scheduler.config, type(scheduler).__name__)
        prediction = process.get("prediction_type", "epsilon")
        if family.is_flow and prediction != "flow_prediction":
            raise UserError(
                f"{type(pipe).__name__} with {type(scheduler).__name__}, which predicts {prediction!r}: its transformer is "
                f"trained by flow matching; expected its own scheduler, such as {flow.SCHEDULER}"
            )
        super().__init__(pipe.transformer, schedule_of(process), prediction, process)
        self.pipe, self.family = pipe, family

    def forward(  # type: ignore[override]
        self, latents: Tensor, timesteps: Tensor, context: Tensor | None = None, **told: Tensor
    ) -> Tensor:
        """The transformer's output (batch, c, h, w): the velocity, or what else its process predicts.

        latents: (batch, c, h, w); timesteps: (batch,) as schedulers count; context: (batch, tokens, width); told:
        "context_mask" (batch, tokens) and "pooled" (batch, width), as the family has it.
        """
        assert context is not None
        dtype = next(self.unet.parameters()).dtype
        texts = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in {"context": context, **told}.items()
        }
        return self.family.denoise(self.pipe, latents.to(dtype), timesteps, texts)


class PipelineDiffusion(LatentDiffusion):
    """A diffusers pipeline of `FAMILIES` as trainings ask for it: its parts are used where they are.

    Texts are encoded, pictures drawn by the pipeline itself; latents are those that the transformer sees.
    """

    def __init__(self, pipe: Any) -> None:
        nn.Module.__init__(self)
        self.pipe, self.family = pipe, FAMILIES[type(pipe).__name__]
        self.conditioning, self.class_names, self.known_words = "text", None, None
        self.rows_per_picture: int | None = None
        self.first_stage = pipe.vae
        self.text_encoder: nn.Module | None = None
        self.text_encoder_2: nn.Module | None = None
        self.text_encoder_3: nn.Module | None = None
        for name in ENCODERS:
            setattr(self, name, getattr(pipe, name, None))
        self.tokenizer = self.tokenizer_2 = None  # several, each with room of its own
        self.diffusion = PipelineDenoiser(pipe, self.family)
        self.diffusion.pixels_per_latent = self.downsampling
        self.eval()

    @property
    def text_encoders(self) -> list[nn.Module]:
        """Those there are, in order."""
        return [e for name in ENCODERS if (e := getattr(self, name)) is not None]

    @property
    def inpaints(self) -> bool:
        """No."""
        return False

    @property
    def downsampling(self) -> int:
        """Pixels of a latent's side."""
        return int(self.pipe.vae_scale_factor * self.family.latent_side)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one picture's latents at the model's own size."""
        config: Any = self.unet.config
        side = getattr(config, "sample_size", None) or getattr(self.pipe, "default_sample_size", None)
        pixels = USUAL_SIDE if side is None else side * self.pipe.vae_scale_factor
        # packed ones are patches of 2 × 2
        packed = 4 if hasattr(self.pipe, "_pack_latents") and self.family.latent_side == 1 else 1
        channels = int(config.in_channels) // packed
        return channels, int(pixels) // self.downsampling, int(pixels) // self.downsampling

    @property
    def text_width(self) -> int:
        """Width of the text states that the transformer is told."""
        config: Any = self.unet.config
        return int(next(width for name in _TEXT_WIDTHS if (width := getattr(config, name, None))))

    @property
    def size_unit(self) -> int:
        """What both sides of a picture must be multiples of, in pixels."""
        config: Any = self.unet.config
        return int(self.downsampling * (self.family.unit or config.patch_size))

    @property
    def usual_sampler(self) -> str:
        """The pipeline's scheduler."""
        return type(self.pipe.scheduler).__name__

    def check_drawing(self, sampler: str = "", negative: str = "") -> None:
        """Refuse, before anything is drawn, what the pipeline cannot draw with.

        Raises:
            UserError: a sampler by name; a negative prompt where the pipeline has none.
        """
        name = type(self.pipe).__name__
        if sampler:
            raise UserError(
                f"sampler {sampler!r}: {name} draws with its own scheduler, {self.usual_sampler}; leave it out"
            )
        if negative and not self.family.negative:
            raise UserError(f"negative prompt {negative!r}: {name} is told none; leave it out")

    @torch.no_grad()
    def moments(self, images: Tensor) -> dict[str, Tensor]:
        """{"mean", "std"} of pictures' latents as the transformer sees them; images: (batch, 3, H, W) in [-1, 1]."""
        find = self.family.moments or scaled_moments
        dtype = next(self.first_stage.parameters()).dtype
        found = find(self.first_stage, images.to(self.device, dtype))
        return {key: value.float() for key, value in found.items()}

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As `LatentDiffusion.encode`, as the transformer sees them."""
        return self.latents_of({"images": images}, generator)

    @torch.no_grad()
    def decode(self, latents: Tensor, *, tiled: bool = False) -> Tensor:
        """Pictures (batch, 3, H, W), about [-1, 1], of latents as the transformer sees them.

        Raises:
            UserError: tiled, for which the first stage has a setting of its own (``pipe.vae.enable_tiling()``).
        """
        if tiled:
            raise UserError("a pipeline's first stage is told of tiles itself: pipe.vae.enable_tiling()")
        dtype = next(self.first_stage.parameters()).dtype
        return self.family.pictures(self.first_stage, latents.to(self.device, dtype)).float()

    def latents_of(self, batch: Mapping[str, Any], generator: torch.Generator | None = None) -> Tensor:
        """Latents of a batch as the transformer sees them: `latents`, else `latent_means` (and `latent_stds`), else
        `images` encoded.

        Raises:
            UserError: the batch holds none of them.
        """
        if "latents" in batch:
            return moved(self, batch["latents"])
        if "latent_means" in batch:
            found = {"mean": batch["latent_means"], "std": batch.get("latent_stds")}
        elif "images" in batch:
            found = dict(self.moments(batch["images"]))
        else:
            raise UserError(f"a batch needs 'images', 'latents' or 'latent_means'; got {sorted(batch)}")
        mean = moved(self, found["mean"])
        if generator is None or found["std"] is None:
            return mean
        return mean + moved(self, found["std"]) * torch.randn(mean.shape, generator=generator).to(mean)

    @torch.no_grad()
    def text_conditions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the transformer is told of captions: "context" (batch, tokens, width), and as the family has it
        "context_mask" (batch, tokens) and "pooled" (batch, width).

        An empty caption is what the pipeline's guidance moves away from.
        """
        said = [caption for caption in captions if caption.strip()]
        rows = iter(self.family.encode(self.pipe, said, self.device) if said else [])
        empty: dict[str, Tensor] = {}
        if len(said) < len(captions):
            encode = self.family.encode_empty
            (empty,) = (
                encode(self.pipe, self.device)
                if encode is not None
                else self.family.encode(self.pipe, [""], self.device)
            )
        return stacked([next(rows) if caption.strip() else empty for caption in captions])

    def conditions(self, batch: Mapping[str, Any], keep: Tensor | None = None) -> dict[str, Tensor]:
        """Keyword arguments for `diffusion` out of a batch: its `captions`, or `embeddings` and what is beside them.

        keep: (batch,) bool, False where the caption is dropped.

        Raises:
            UserError: neither is in the batch.
        """
        if "embeddings" in batch:
            found = {key: moved(self, batch[name]) for key, name in FORMS.items() if name in batch}
            if keep is None or bool(keep.all()):
                return found
            empty = {key: value[0] for key, value in self.text_conditions([""]).items()}
            rows = [{key: value[i] for key, value in found.items()} for i in range(len(keep))]
            return stacked([row if k else empty for row, k in zip(rows, keep.tolist(), strict=True)])
        if "captions" not in batch:
            raise UserError(f"a batch for a text model needs 'captions' or 'embeddings'; got {sorted(batch)}")
        kept = [True] * len(batch["captions"]) if keep is None else keep.tolist()
        return self.text_conditions([c if k else "" for c, k in zip(batch["captions"], kept, strict=True)])

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self,
        captions: str | Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        steps: int = 25,
        sampler: str | None = None,
        guidance_scale: float = 4.0,
        negative: str = "",
        size: tuple[int, int] | None = None,
        on_step: Callable[[int, int, Any], None] | None = None,
    ) -> Tensor:
        """Pictures (batch, 3, H, W) in [0, 1] that the pipeline draws, one by one, with noise of the CPU.

        Arguments as of `LatentDiffusion.sample`; sampler: None, or the pipeline's scheduler. guidance_scale: 1 is none,
        whatever the pipeline calls that. on_step: told (step, steps, latents as the pipeline has them) of each picture.

        Raises:
            UserError: see `check_drawing`; a size that the model cannot make.
        """
        self.check_drawing("" if sampler in (None, self.usual_sampler) else str(sampler), negative)
        captions = [captions] if isinstance(captions, str) else captions
        height, width = size or (self.image_size, self.image_size)
        if height % self.size_unit or width % self.size_unit:
            raise UserError(
                f"size {width}x{height} is not possible: both sides must be multiples of {self.size_unit} pixels"
            )
        scale = max(guidance_scale, 1.0) - 1 + self.family.no_guidance
        told = {self.family.guidance: scale, **self.family.drawing, **self._watched(on_step, steps)}
        if self.family.negative:
            told["negative_prompt"] = negative
        made = []
        with self._drawing() as pipe:
            for caption, seed in zip(captions, seeds or range(len(captions)), strict=True):
                made.append(
                    pipe(
                        prompt=caption,
                        height=height,
                        width=width,
                        num_inference_steps=steps,
                        generator=torch.Generator().manual_seed(seed),
                        output_type="pt",
                        **told,
                    ).images
                )
        return torch.cat(made)

    def _watched(self, on_step: Callable[[int, int, Any], None] | None, steps: int) -> dict[str, Any]:
        """How the pipeline is told of `on_step`."""
        if on_step is None:
            return {}
        if "callback_on_step_end" not in inspect.signature(type(self.pipe).__call__).parameters:  # of PixArt
            return {
                "callback": lambda step, _, latents: on_step(step + 1, steps, latents),
                "callback_steps": 1,
            }

        def told(pipe: Any, step: int, timestep: Any, found: dict[str, Any]) -> dict[str, Any]:
            on_step(step + 1, steps, found.get("latents"))
            return found

        return {"callback_on_step_end": told}

    @contextmanager
    def _drawing(self) -> Iterator[Any]:
        """The pipeline, with a scheduler that may change and without a progress bar."""
        pipe = self.pipe
        scheduler, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", None)
        pipe.scheduler = copy.deepcopy(scheduler)
        pipe.set_progress_bar_config(disable=True)
        try:
            yield pipe
        finally:
            pipe.scheduler = scheduler
            pipe.set_progress_bar_config(**(bar or {}))

    def pipeline(self) -> Any:
        """The pipeline."""
        return self.pipe

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the pipeline's folder as diffusers does; dtype: None, its own precision."""
        if dtype is not None:
            raise UserError("a pipeline is saved in the precision it is in; leave dtype out")
        self.pipe.save_pretrained(folder)


def as_model(model: Any) -> LatentDiffusion:
    """A model to draw with and to train adapters on: a `LatentDiffusion` as it is, or a diffusers pipeline.

    Raises:
        UserError: neither, or a pipeline of a kind that is not known.
    """
    if isinstance(model, LatentDiffusion):
        return model
    name = type(model).__name__
    if name in FAMILIES:
        return PipelineDiffusion(model)
    if hasattr(model, "transformer") and not hasattr(model, "unet"):
        raise UserError(
            f"{name} is of no kind known here: expected a Stable Diffusion pipeline, or one of {', '.join(FAMILIES)}"
        )
    return loading.from_pipeline(LatentDiffusion, model)


def open_any(source: str | Path, dtype: torch.dtype = torch.float32) -> LatentDiffusion:
    """A model to draw with and to train adapters on, by what `LatentDiffusion.from_pretrained` takes, or the folder or hub id
    of a pipeline of `FAMILIES`.

    dtype: of a transformer's pipeline; all else is opened in float32.

    Raises:
        UserError: see `LatentDiffusion.from_pretrained` and `as_model`.
    """
    index = read_json(Path(source) / "model_index.json")
    known = index.get("_class_name") in FAMILIES
    model = as_model(loading.opened(LatentDiffusion, source, dtype=dtype if known else torch.float32))
    return model.to(dtype) if isinstance(model, PipelineDiffusion) else model
