"""Where conditions are read: a pipeline's own text encoder and first stage, and a vision model if there is one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator.conditions import (
    Condition,
    ImageCondition,
    TextCondition,
    is_picture,
)
from hyperbrush.ldm.models.text import tokenize
from hyperbrush.ldm.modules.transformer_sites import find_transformer

if TYPE_CHECKING:
    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.models.pipelines import PipelineDiffusion

EMBEDDED = "emoji"


class ConditionSource:
    """Encoders for texts and pictures.

    model: a pipeline (of a transformer one of `pipeline_families.FAMILIES`) or LatentDiffusion; None: the embedded model,
        opened when first needed.
    vision: CLIPVisionModel, Dinov2Model or the like, read at its last hidden state; processor: its image processor.

    Raises:
        UserError: a model without a first stage, or a vision model without its processor.
    """

    def __init__(self, model: Any = None, vision: Any = None, processor: Any = None) -> None:
        if (vision is None) != (processor is None):
            raise UserError("a vision model needs its image processor: give both, or neither")
        self.given = model
        self._model: LatentDiffusion | None = None
        self.vision, self.processor = vision, processor

    @property
    def model(self) -> "LatentDiffusion":
        """What texts and pictures go through."""
        if self._model is None:
            from hyperbrush.ldm.models import LatentDiffusion

            given = self.given
            self._model = (
                LatentDiffusion.from_pretrained(EMBEDDED).eval() if given is None else _model_of(given)
            )
        return self._model

    @property
    def _pipeline(self) -> "PipelineDiffusion | None":
        """The model, where it is a transformer's pipeline."""
        from hyperbrush.ldm.models.pipeline_families import FAMILIES
        from hyperbrush.ldm.models.pipelines import PipelineDiffusion

        known = isinstance(self.given, PipelineDiffusion) or type(self.given).__name__ in FAMILIES
        return cast("PipelineDiffusion", self.model) if known else None

    @property
    def text_width(self) -> int:
        """Width of the text states; 768 for a model without a text encoder."""
        if self.given is None:
            return int(_embedded_config("text_encoder")["hidden_size"])
        if (pipeline := self._pipeline) is not None:
            return pipeline.text_width
        encoders = [getattr(self.given, name, None) for name in ("text_encoder", "text_encoder_2")]
        return sum(int(e.config.hidden_size) for e in encoders if e is not None) or 768

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        if self.given is None:
            return int(_embedded_config("vae")["latent_channels"])
        if (pipeline := self._pipeline) is not None:
            return pipeline.latent_shape[0]
        stage: Any = getattr(self.given, "vae", None) or self.model.first_stage
        return int(stage.config.latent_channels)

    @property
    def image_width(self) -> int | None:
        """Width of the vision model's states; None without one."""
        return None if self.vision is None else int(self.vision.config.hidden_size)

    def of_batch(self, batch: Mapping[str, Any]) -> Any:
        """What a training batch (see `LatentDiffusion.losses`) holds of a condition: its "condition", as
        `Hypernetwork.generate_weights` takes them; else its pictures ("images", "latents" or "latent_means"), each the
        one reference of its sample; else its "captions".

        Raises:
            UserError: it holds none of them.
        """
        if "condition" in batch:
            return batch["condition"]
        if "images" in batch:
            return ImageCondition([[image.clamp(-1, 1) / 2 + 0.5] for image in batch["images"]])
        if "latents" in batch or "latent_means" in batch:
            with torch.no_grad():
                return ImageCondition(latents=self.model.latents_of(batch)[:, None])
        if "captions" in batch:
            return TextCondition(list(batch["captions"]))
        raise UserError(
            f"a batch with {sorted(batch)} says nothing to generate weights from: expected 'condition', 'images', "
            "'latents', 'latent_means' or 'captions' in it"
        )

    @torch.no_grad()
    def prepare(self, condition: Condition, size: int | None = None) -> Condition:
        """The same condition with tensors in the place of texts and pictures.

        size: side at which pictures are looked at, in pixels; None: the model's own.

        Raises:
            UserError: the model reads no texts, or something is no picture.
        """
        if isinstance(condition, TextCondition) and condition.states is None:
            single = isinstance(condition.texts, str)
            states, mask = self._states([condition.texts] if single else list(condition.texts or ()))  # type: ignore[list-item]
            return TextCondition(states=states[0] if single else states, mask=mask[0] if single else mask)
        if isinstance(condition, ImageCondition) and condition.pictures is not None:
            return self._look(condition, size)
        return condition

    def _states(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """(batch, tokens, width), and which tokens are the text's (until its end token)."""
        model = self.model
        if self._pipeline is not None:
            told = model.text_conditions(texts)
            states = told["context"].float()
            return states, told.get("context_mask", torch.ones(states.shape[:2])).bool().to(states.device)
        states = model.text_conditions(texts)["context"]
        ids = tokenize(model.tokenizer, texts)
        ends = (ids == model.tokenizer.eos_token_id).int()
        mask = (ends.cumsum(1) - ends) == 0
        return states, mask.to(states.device)

    def _look(self, condition: ImageCondition, size: int | None) -> ImageCondition:
        samples = condition.samples
        most = max(len(sample) for sample in samples)
        present = torch.tensor([[i < len(sample) for i in range(most)] for sample in samples])
        flat = [picture for sample in samples for picture in sample]
        latents = _spread(self.latents(flat, size), present)
        features = None if self.vision is None else _spread(self.features(flat), present)
        if condition.batch is None:
            return ImageCondition(latents=latents[0], features=None if features is None else features[0])
        return ImageCondition(latents=latents, features=features, present=present)

    @torch.no_grad()
    def latents(self, pictures: list[Any], size: int | None = None) -> Tensor:
        """Scaled latents (pictures, c, h, w): the posterior's mean of pictures at a size, else the model's own.

        Raises:
            UserError: something is no picture.
        """
        model = self.model
        stage: Any = model.first_stage
        size, at = size or model.image_size, next(stage.parameters())
        latents = [model.encode(_pixels(picture, size)[None].to(at) * 2 - 1) for picture in pictures]
        return torch.cat(latents).float()

    @torch.no_grad()
    def features(self, pictures: list[Any]) -> Tensor:
        """Last hidden states (pictures, tokens, width) of the vision model."""
        images = [_image(picture) for picture in pictures]
        inputs = self.processor(images=images, return_tensors="pt").pixel_values
        at = next(self.vision.parameters())
        states: Tensor = self.vision(inputs.to(at.device, at.dtype)).last_hidden_state
        return states.float()


def _model_of(given: Any) -> "LatentDiffusion":
    """A model that reads conditions; a pipeline's parts stay in their modes.

    Raises:
        UserError: see `contexts.as_model`.
    """
    from hyperbrush.hypernetworks.attaching.contexts import as_model, restored_modes
    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.models.pipeline_families import FAMILIES
    from hyperbrush.ldm.models.pipelines import PipelineDiffusion

    if isinstance(given, LatentDiffusion) and find_transformer(given.unet) is not None:
        return given
    if type(given).__name__ in FAMILIES:
        parts = [part for part in given.components.values() if isinstance(part, torch.nn.Module)]
        with restored_modes(*parts):
            return PipelineDiffusion(given)
    return as_model(given)


def _spread(flat: Tensor, present: Tensor) -> Tensor:
    """(pictures, …) → (batch, references, …), zeros where there is none."""
    out = flat.new_zeros(*present.shape, *flat.shape[1:])
    out[present.to(flat.device)] = flat
    return out


def _embedded_config(part: str) -> dict[str, Any]:
    from hyperbrush.assets import model_folder

    text = (model_folder(EMBEDDED) / part / "config.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def _image(picture: Any) -> Any:
    """A picture as an RGB image on white."""
    import numpy as np
    from PIL import Image

    from hyperbrush.ldm.data.pictures import opened

    if not is_picture(picture):
        what = f"a tensor {tuple(picture.shape)}" if isinstance(picture, Tensor) else f"{picture!r:.80}"
        raise UserError(
            f"{what} is no picture: expected a PIL image, a path, or a tensor (3, height, width) in [0, 1]"
        )
    if isinstance(picture, Tensor):
        values = (picture.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
        return Image.fromarray(np.asarray(values))
    if isinstance(picture, str | Path) and not Path(picture).is_file():
        raise UserError(f"{picture} is no file: expected a picture")
    return opened(picture, "the picture")


def _pixels(picture: Any, size: int) -> Tensor:
    """A picture as (3, size, size) in [0, 1]: its middle, scaled."""
    import numpy as np
    from PIL import ImageOps
    from PIL.Image import Resampling

    image = ImageOps.fit(_image(picture), (size, size), Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
