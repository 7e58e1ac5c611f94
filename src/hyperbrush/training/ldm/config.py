"""Settings of `hyperbrush ldm train`: a first stage or a diffusion model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from hyperbrush.errors import unknown_name
from hyperbrush.ldm.util import load_config, read_yaml
from hyperbrush.training.data.pictures import FolderConfig, PictureSettings
from hyperbrush.training.loop.config import Place, Rate, Share, Strict, TrainerConfig
from hyperbrush.training.loop.settings import merge_settings, resumed

if TYPE_CHECKING:
    from hyperbrush.ldm.modules.diffusion import Process

Side = Annotated[int, Field(ge=8)]


class DataConfig(PictureSettings):
    """Where the pictures are, and how they and their captions become examples."""

    DEFAULTS = {"flip": 0.0}

    folders: list[FolderConfig] = Field(min_length=1, description="folders of pictures, see above")
    held_out: list[FolderConfig] = Field(
        [], description="folders to validate on; else validation_share of the pictures"
    )
    size: Side | tuple[Side, Side] = Field(64, description="side in pixels, or [height, width]")
    validation_share: Share = Field(
        0.0, description="share of the pictures held out where no folders are; 0.1 is usual"
    )
    on_problem: Literal["skip", "raise"] = Field(
        "skip", description="files that cannot be used are told and left out, or end it"
    )
    cache: Place = Field("", description="folder for cached latents; the run's own by default")


class FirstStageConfig(Strict):
    """An autoencoder from scratch."""

    type: Literal["kl", "vq"] = Field("kl", description="continuous latents, or those of a codebook")
    latent_dim: int = Field(4, ge=1, description="channels of the latents")
    channels: list[int] = Field(
        [16, 48, 96], description="of each level; each further one halves the picture"
    )
    layers_per_block: int = Field(1, ge=1, description="residual blocks a level")
    mid_attention: bool = Field(False, description="attention at the smallest level")
    codebook: int = Field(1024, ge=2, description="entries of a vq codebook")
    revive_every: int = Field(
        100, ge=0, description="steps after which codebook entries that no picture uses begin anew; 0: never"
    )


class LossConfig(Strict):
    """Weights of the first stage's loss; see `FirstStageLoss`."""

    l1: float = Field(1.0, ge=0, description="weight of the absolute error")
    mse: float = Field(1.0, ge=0, description="weight of the squared error")
    gradient: float = Field(1.0, ge=0, description="weight of the error of neighbouring differences: edges")
    log_mse: float = Field(0.0, ge=0, description="weight of log(squared error): the fine end")
    kl: float = Field(1e-3, ge=0, description="weight of the distance to a normal distribution")
    quantise: float = Field(1.0, ge=0, description="weight of the codebook's loss")
    perceptual: float = Field(
        0.0, ge=0, description="weight of LPIPS (the extra 'perceptual', and its network's weights); 0: none"
    )
    perceptual_network: Literal["alex", "vgg", "squeeze"] = Field(
        "vgg", description="what LPIPS looks through"
    )
    adversarial_weight: float = Field(0.0, ge=0, description="weight of a patch discriminator; 0: none")
    adversarial_start: int = Field(0, ge=0, description="step at which it begins")
    adversarial_adaptive: bool = Field(
        False,
        description="multiply its weight by what makes its gradient at the decoder's last layer as large as the others'",
    )

    @model_validator(mode="after")
    def _reconstructs(self) -> "LossConfig":
        if not (self.l1 or self.mse or self.log_mse):
            raise ValueError("one of l1, mse and log_mse must be above 0, or nothing asks for the picture")
        if self.adversarial_adaptive and not self.adversarial_weight:
            raise ValueError(
                "adversarial_adaptive scales adversarial_weight, which is 0: give one, such as 0.8"
            )
        return self


class FirstStageRun(Strict):
    """`kind: first_stage`."""

    kind: Literal["first_stage"] = Field(description="what the file is for")
    data: DataConfig
    model: FirstStageConfig = FirstStageConfig()
    loss: LossConfig = LossConfig()
    training: TrainerConfig = TrainerConfig()

    @model_validator(mode="after")
    def _pictures_alone(self) -> "FirstStageRun":
        fields = ("masks", "latent_sampling", "cache", "missing", "classes", "condition_folder")
        if used := [
            name for name in fields if getattr(self.data, name) != DataConfig.model_fields[name].default
        ]:
            raise ValueError(
                f"data.{', data.'.join(used)}: a first stage learns whole pictures as they are, not their latents; leave that out"
            )
        return self


class TextConfig(Strict):
    """A CLIP text model from scratch, its tokenizer trained on the captions."""

    width: int = Field(128, ge=8, description="of the text states")
    layers: int = Field(3, ge=1, description="transformer layers")
    num_heads: int = Field(4, ge=1, description="attention heads")
    vocabulary: int = Field(4096, ge=600, description="tokens learnt from the captions")
    max_length: int = Field(77, ge=8, description="tokens of a caption at most")

    @model_validator(mode="after")
    def _divides(self) -> "TextConfig":
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by {self.num_heads} heads")
        return self


class UNetConfig(Strict):
    """A UNet from scratch; attention stands where the latent map is as wide as listed."""

    channels: list[int] = Field([64, 128, 192], description="of each level")
    attention_resolutions: list[int] = Field(
        [8, 4], description="sides of the latent maps that have attention"
    )
    num_heads: int = Field(4, ge=1, description="attention heads")
    layers_per_block: int = Field(2, ge=1, description="residual blocks a level")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations left out in each step")


class TransformerConfig(Strict):
    """A PixArt transformer from scratch, in the UNet's place."""

    width: int = Field(192, ge=8, description="of the tokens; a multiple of num_heads and of 4")
    layers: int = Field(8, ge=1, description="blocks of self-attention, cross-attention and feed-forward")
    num_heads: int = Field(6, ge=1, description="attention heads")
    patch_size: int = Field(2, ge=1, description="side of the square of latents that is a token")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations left out in each step")

    @model_validator(mode="after")
    def _fits(self) -> "TransformerConfig":
        from hyperbrush.ldm.models.transformer import check_width

        check_width(self.width, self.num_heads)
        return self


class ProcessConfig(Strict):
    """The diffusion process and what is asked of it."""

    schedule: str | list[float] = Field(
        "scaled_linear",
        description="of the noise: scaled_linear, linear, cosine, …, or the betas of all steps",
    )
    prediction: str = Field(
        "v_prediction", description="epsilon, v_prediction or sample; flow_prediction: flow matching"
    )
    shift: float = Field(
        1.0,
        gt=0,
        description="of flow_prediction: above 1 timesteps lie nearer to noise, in training and drawing; 3 for large pictures",
    )
    zero_terminal_snr: bool = Field(False, description="let the last step be noise alone")
    weighting: str = Field(
        "none",
        description="of timesteps: none, min_snr, debiased; of flow_prediction none, sigma_sqrt, cosmap",
    )
    timestep_sampling: str = Field("uniform", description="uniform, stratified, logit_normal or shifted")
    timestep_options: dict[str, float] = Field(
        {}, description="what it is told: mean and std of logit_normal (0, 1), shift of shifted (3)"
    )
    condition_dropout: Share = Field(0.1, description="share of pictures trained without their caption")
    offset_noise: float = Field(0.0, ge=0, description="noise of the whole picture; 0: none")
    perturbation: float = Field(0.0, ge=0, description="noise added to the input alone; 0: none")

    @field_validator("schedule")
    @classmethod
    def _sound(cls, value: str | list[float]) -> str | list[float]:
        from hyperbrush.ldm.models.diffusion_model import scheduler_config

        scheduler_config(value, 1000, "epsilon", False)
        return value

    @model_validator(mode="after")
    def _possible(self) -> "ProcessConfig":
        from hyperbrush.ldm.modules.diffusion import check_prediction, check_weighting
        from hyperbrush.ldm.modules.draws import timestep_options

        check_prediction(self.prediction, self._schedule())
        check_weighting(self.weighting)
        timestep_options(self.timestep_sampling, self.timestep_options)
        return self

    def _schedule(self) -> "Process":
        from hyperbrush.ldm.models.diffusion_model import schedule_of, scheduler_config

        return schedule_of(
            scheduler_config(self.schedule, 1000, self.prediction, self.zero_terminal_snr, self.shift)
        )

    def check_weighting(self) -> None:
        """Refuse a weighting that this process does not have.

        Raises:
            UserError: it has not.
        """
        from hyperbrush.ldm.modules.diffusion import check_weighting

        check_weighting(self.weighting, self._schedule())


class DiffusionRun(Strict):
    """`kind: diffusion`: a UNet or transformer and text encoder on a trained first stage, or on from another model."""

    kind: Literal["diffusion"] = Field(description="what the file is for")
    data: DataConfig
    conditioning: Literal["text", "none", "class", "image"] = Field(
        "text",
        description="what the model is told: captions, nothing, the class of a picture (data.classes), or a picture "
        "(data.condition_folder)",
    )
    first_stage: Place = Field("", description="folder of the trained first stage")
    start_from: Place = Field("", description="go on from a whole model instead (emoji, folder, file)")
    text: TextConfig = TextConfig()
    text_learning_rate: Rate | None = Field(
        None,
        ge=0,
        description="peak rate of the text encoder; 0: it stays as it is; null: the training's own",
    )
    unet: UNetConfig = UNetConfig()
    transformer: TransformerConfig | None = Field(
        None, description="a transformer in the UNet's place: a section of its own, `{}` for its defaults"
    )
    process: ProcessConfig = ProcessConfig()
    prompts: list[str] | None = Field(
        None, description="of the previews; by default captions of eight held-out pictures; [] draws none"
    )
    guidance_scale: float = Field(4.0, description="of the previews")
    training: TrainerConfig = TrainerConfig()

    @model_validator(mode="after")
    def _one_origin(self) -> "DiffusionRun":
        fresh = {
            "first_stage": self.first_stage,
            "text": self.text,
            "unet": self.unet,
            "transformer": self.transformer,
            "conditioning": self.conditioning,
        }
        fields = type(self).model_fields
        set_too = [name for name, value in fresh.items() if value != fields[name].default]
        process = ProcessConfig()
        set_too += [
            f"process.{name}"
            for name in ("schedule", "prediction", "zero_terminal_snr", "shift")
            if getattr(self.process, name) != getattr(process, name)
        ]
        if self.start_from and set_too:
            raise ValueError(f"start_from brings its own {', '.join(set_too)}; leave that out")
        if not self.start_from:
            self.process.check_weighting()
        if self.transformer is not None and self.unet != UNetConfig():
            raise ValueError("transformer takes the UNet's place: leave one of transformer and unet out")
        if self.transformer is not None and self.conditioning != "text":
            raise ValueError(
                f"a transformer reads text alone, not conditioning {self.conditioning!r}: leave one of them out"
            )
        if self.conditioning != "text" and self.text != TextConfig():
            raise ValueError(f"conditioning {self.conditioning!r} reads no text: leave 'text' out")
        if self.conditioning in ("none", "image") and self.prompts:
            raise ValueError(f"conditioning {self.conditioning!r} reads no prompts: leave them out")
        if not self.start_from and self.data.condition_folder and self.conditioning != "image":
            raise ValueError("data.condition_folder is for conditioning 'image'; leave it out")
        if not self.start_from and self.data.classes != "folders" and self.conditioning != "class":
            raise ValueError("data.classes is for conditioning 'class'; leave it out")
        return self


Run = FirstStageRun | DiffusionRun
KINDS = {"first_stage": FirstStageRun, "diffusion": DiffusionRun}


def kind_of(values: dict[str, Any]) -> Any:
    """The settings' class that a config's `kind` names.

    Raises:
        UserError: there is none.
    """
    kind = values.get("kind")
    if kind not in KINDS:
        raise unknown_name("kind of training (first line 'kind: …')", str(kind), KINDS)
    return KINDS[kind]


def read_config(source: str | Path | dict[str, Any], **overrides: Any) -> Run:
    """Validate a config; its `kind` says which.

    Raises:
        UserError: see `load_config`.
    """
    model: Any = kind_of(source if isinstance(source, dict) else read_yaml(Path(source)))
    return TypeAdapter(Run).validate_python(load_config(model, source, **overrides))


def settings_of(
    source: Path, *, settings: Sequence[str] = (), training: Mapping[str, Any] | None = None, **given: Any
) -> Run:
    """A config's settings; those given win over it, see `merge_settings`.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    values = read_yaml(source)
    found: Run = merge_settings(kind_of(values), None, values, settings=settings, training=training, **given)
    return found


def settings_to_go_on(
    run: Path,
    *,
    at: int | None = None,
    settings: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    **given: Any,
) -> tuple[Run, bool]:
    """The settings of a run that goes on, and whether they differ from those it has; see `resumed`.

    Raises:
        UserError: see `resumed`.
    """
    kind = kind_of(read_yaml(run / "config.yaml"))
    return resumed(kind, run, at=at, settings=settings, training=training, **given)
