"""Training a hypernetwork that generates weights, end to end against the denoising loss of a frozen model."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks.generator import (
    Factors,
    GeneratedWeights,
    Hypernetwork,
    ImageCondition,
    TargetNetwork,
    TextCondition,
)
from hyperbrush.ldm.data import BatchOrder, Captioning
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.modules.diffusion import Loss
from hyperbrush.ldm.util import keyed_generator
from hyperbrush.training.attention.objective import Compute
from hyperbrush.training.data.cached import Texts, cached_texts, text_states
from hyperbrush.training.generator.config import GeneratorConfig
from hyperbrush.training.generator.styles import (
    ABOUT,
    FoundStyle,
    References,
    Style,
    StyleBatches,
    encode_styles,
    find_styles,
)
from hyperbrush.training.ldm.objectives import grid_losses
from hyperbrush.training.loop.objectives import Objective, steps_added
from hyperbrush.training.loop.progress import PrepareCallback

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)


class GeneratorObjective(Objective):
    """Look at some pictures of a style, draw other contents in it: the denoising loss through generated weights.

    The model is no submodule: only the hypernetwork is moved, wrapped, averaged and saved.

    Args:
        model: frozen here.
        net: what is trained; bound to the model.
        config: settings.
        styles, held_out: to train on, and to judge by.
        texts: what the UNet is told of every caption and of the empty text.
        loss: error of each element, (prediction, target) → the same shape; the squared one by default.
        compute: the whole loss of a batch, (model with the weights applied, batch) → the loss or several terms, in
            place of the denoising loss.

    Raises:
        UserError: a loss or compute for an objective that denoises nothing.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        net: Hypernetwork,
        config: GeneratorConfig,
        styles: Sequence[Style],
        *,
        held_out: Sequence[Style] | None = None,
        texts: Texts | None = None,
        loss: Loss | None = None,
        compute: Compute | None = None,
    ) -> None:
        super().__init__()
        model.requires_grad_(False).eval()
        self._model = (model,)  # in a tuple, out of torch's sight
        if config.objective == "reconstruction" and (loss is not None or compute is not None):
            raise UserError(
                f"{'loss' if compute is None else 'compute'} is of what is drawn, and objective 'reconstruction' draws "
                "nothing: take objective 'denoising' or 'mixed', or leave it out"
            )
        self.net, self.config, self.texts = net, config, texts
        self.loss, self.compute = loss or "mse", compute
        self.target = TargetNetwork(model, tuple(net.layers))
        self.batches = StyleBatches(
            styles, config.pictures_per_style, config.references, config.style_dropout, config.seed
        )
        self.held_out = held_out
        # What an epoch consists of: every picture of every style.
        self.data = [(style, picture) for style in styles for picture in range(len(style))]
        self._base: float | None = None

    @property
    def model(self) -> LatentDiffusion:
        """The frozen model."""
        return self._model[0]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What all styles share learns at a rate of its own: factors bear a higher one than a trunk."""
        own = self._shared()
        shared = [p for p in self.parameters() if id(p) in own]
        rest = [p for p in self.parameters() if id(p) not in own]
        groups: list[dict[str, Any]] = [
            {"params": rest},
            {"params": shared, "scale": self.config.shared_rate},
        ]
        return [group for group in groups if group["params"]]

    def _shared(self) -> set[int]:
        """Ids of the decoder's shared parameters; none where its form has none."""
        try:
            return set(map(id, self.net.decoder.shared_parameters()))  # type: ignore[operator]
        except (AttributeError, UserError):  # another's decoder, or a form without
            return set()

    def picture_paths(self) -> tuple[list[str], list[str]] | None:
        """Of all styles' pictures; None where some have no paths."""
        found = []
        for styles in (self.batches.styles, self.held_out or ()):
            if not all(style.paths for style in styles):
                return None
            found.append([path for style in styles for path in style.paths])
        return found[0], found[1]

    def place(self, device: torch.device) -> None:
        """Move the frozen model."""
        self.model.to(device)

    def close(self) -> None:
        """Leave the model as it was."""
        self.model.unet._compiled_call_impl = None  # what Module.compile sets

    def batch(self, step: int, batch_size: int) -> dict[str, Any]:
        """References of some styles, targets with other contents, and this step's noise and timesteps."""
        c = self.config
        references, rows = self.batches.draw(step, batch_size)
        styles = self.batches.styles
        latents = torch.stack([styles[style].latents[picture] for _, style, picture in rows])
        generator = keyed_generator(c.seed, "noise", step)
        drawn = self.model.draw(
            tuple(latents.shape),
            generator,
            condition_dropout=c.condition_dropout,
            **c.drawing(len(self.model.diffusion.schedule)),
        )
        keep = drawn.pop("keep").tolist()
        spoken = enumerate(styles[style].said(picture) for _, style, picture in rows)
        said = [Captioning().caption(captions, c.seed, step, row) for row, captions in spoken]
        captions = [caption if kept else "" for caption, kept in zip(said, keep, strict=True)]
        by_text = torch.rand(len(references.styles), generator=generator) < c.text_share
        return {
            **drawn,
            **self.text_states(captions),
            "latents": latents,
            "captions": captions,
            "samples": torch.tensor([sample for sample, _, _ in rows]),
            "references": references,
            "by_text": [bool(t) and bool(references.text[i]) for i, t in enumerate(by_text.tolist())]
            + [False],
            "paths": [f"{styles[style].name}: {styles[style].captions[p]}" for _, style, p in rows],
            "step": step,
        }

    def text_states(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the UNet is told of captions, from the cache; empty where there is none."""
        if self.texts is None:
            return {}
        return text_states(self.texts, captions)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms: "denoising", "reconstruction" and the penalties, as far as they are on."""
        c, references = self.config, batch["references"]
        samples, rows = batch["samples"].unique(return_inverse=True)
        with _Trained(self.net, self._shared(), batch["step"] < c.shared_steps if c.shared_steps else None):
            weights = self.weights(references, samples.tolist(), batch["by_text"])
        terms: dict[str, Tensor] = {}
        extra: dict[str, Tensor] = {}
        if c.objective != "reconstruction":
            with self.target.apply_weights(_picked(weights, rows.to(self.net.device))):
                terms["denoising"], extra = self._drawn(batch)
        if c.objective != "denoising":
            scale = 1.0 if c.objective == "reconstruction" else c.reconstruction_weight
            terms["reconstruction"] = scale * self._reconstruction(weights, references, samples.tolist())
        if c.norm_weight:
            terms["norm"] = c.norm_weight * weights.squared_norm().mean()
        if c.retain:
            null = references.drop[samples.cpu()].to(self.net.device)
            terms["retain"] = c.retain * (weights.squared_norm() * null).sum() / len(null)
        return {**extra, "loss": torch.stack(list(terms.values())).sum(), **terms}

    def _drawn(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of what is drawn, and other terms that `compute` tells."""
        if self.compute is None:
            losses = self.model.losses(batch, weighting=self.config.weighting, loss=self.loss)
            return losses.mean(), {}
        found = self.compute(self.model, batch)
        if not isinstance(found, Mapping):
            return found, {}
        if "loss" not in found:
            raise UserError(
                f"compute returned {sorted(found)}: expected the loss, or terms with 'loss' among them"
            )
        return found["loss"], {key: value for key, value in found.items() if key != "loss"}

    def weights(
        self, references: References, samples: Sequence[int], by_text: Sequence[bool] = ()
    ) -> GeneratedWeights:
        """Weights for samples of a batch, in their order."""
        device = self.net.device
        text = [i for i in samples if by_text and by_text[i]]
        seen = [i for i in samples if i not in text]
        made: list[GeneratedWeights] = []
        if seen:
            condition = ImageCondition(
                latents=references.latents[seen].to(device), present=references.present[seen].to(device)
            )
            made.append(self.net.generate_weights(condition, drop=references.drop[seen].to(device)))
        if text:
            said = TextCondition([references.text[i] for i in text])
            made.append(self.net.generate_weights(said, drop=references.drop[text].to(device)))
        if len(made) == 1:
            return made[0]
        places = [(seen + text).index(i) for i in samples]
        return _picked(_joined(made), torch.tensor(places, device=device))

    def _reconstruction(
        self, weights: GeneratedWeights, references: References, samples: Sequence[int]
    ) -> Tensor:
        """Mean of ‖ΔW − ΔW*‖² / ‖ΔW*‖², whatever the factors of either."""
        errors = []
        for place, sample in enumerate(samples):
            adapter = self.batches.styles[references.styles[sample]].adapter
            assert adapter is not None
            goal = adapter.to(self.net.device)
            errors.append(weights[place].squared_distance(goal) / goal.squared_norm().clamp_min(1e-12))
        return torch.stack(errors).mean()

    def validate(self) -> dict[str, float]:
        """On held-out styles: "loss" with weights from their own references, "shuffled" from another style's (of two or
        more), "base" without weights.  Reconstruction is not judged: what counts is what is drawn.
        """
        if not self.held_out:
            return {}
        styles = self.held_out[: self.config.validation_styles]
        batches = StyleBatches(styles, 1, self.config.references, 0.0, self.config.seed)
        shown = [list(range(min(style.references, self.config.references))) for style in styles]
        made = self.weights(batches.show(range(len(styles)), shown), range(len(styles)))
        if self._base is None:
            self._base = self._judged(styles, None)
        found = {"loss": self._judged(styles, made), "base": self._base}
        if len(styles) > 1:
            turned = torch.arange(1, len(styles) + 1, device=self.net.device) % len(styles)
            found["shuffled"] = self._judged(styles, _picked(made, turned))
        return found

    def _judged(self, styles: Sequence[Style], weights: GeneratedWeights | None) -> float:
        losses = []
        for number, style in enumerate(styles):
            own = None if weights is None else weights[number]
            losses.append(style_losses(self, style, own, self.config.validation_pictures).mean())
        return float(torch.stack(losses).mean())

    def preview(self) -> "Image | None":
        """For some styles, held-out ones where there are: two references, then the prompts with their weights."""
        from hyperbrush.ldm.pictures import grid, to_pictures

        c = self.config
        styles = (self.held_out or self.batches.styles)[:6]
        prompts = list(dict.fromkeys(styles[0].captions))[:4] if c.prompts is None else c.prompts
        if not prompts:
            return None
        batches = StyleBatches(styles, 1, c.references, 0.0, c.seed)
        shown = [list(range(min(style.references, c.references))) for style in styles]
        made = self.weights(batches.show(range(len(styles)), shown), range(len(styles)))
        rows = []
        for number, style in enumerate(styles):
            seen = self.model.decode(style.latents[[0, min(1, len(style) - 1)]].to(self.model.device))
            rows += to_pictures(seen.float() / 2 + 0.5)
            with self.target.apply_weights(made[number]):
                drawn = self.model.sample(
                    prompts,
                    seeds=[c.preview_seed + i for i in range(len(prompts))],
                    steps=c.preview_steps,
                    sampler=c.preview_sampler or None,
                    guidance_scale=c.preview_guidance,
                    negative=c.preview_negative,
                    size=None if c.size is None else (c.size, c.size),
                )
            rows += to_pictures(drawn)
        return grid(rows, columns=2 + len(prompts))

    def save(self, folder: Path) -> Path:
        """Write folder/NAME.safetensors."""
        self.net.trained = True
        with_text = self.config.text_share > 0 and any(style.text for style in self.batches.styles)
        learned = ("pictures", "text") if with_text else ("pictures",)
        self.net.learned = tuple(dict.fromkeys((*self.net.learned, *learned)))
        with steps_added(self.net, self.step):
            return self.net.save(folder / f"{self.net.name}.safetensors")


@torch.no_grad()
def style_losses(
    objective: GeneratorObjective, style: Style, weights: GeneratedWeights | None, pictures: int | None = None
) -> Tensor:
    """Unweighted denoising loss of a style's targets over one fixed grid: (targets, timesteps), float32 on the CPU.

    Target i meets timestep j always with the same noise, whatever the style, the weights or the batch.
    """
    model = objective.model
    places = range(style.references, len(style))[:pictures]
    latents = style.latents[list(places)].to(model.device)
    batch: dict[str, Any] = {"captions": [style.captions[i] for i in places]}
    conditions: dict[str, Any] = model.conditions(batch | objective.text_states(batch["captions"]))
    applied = contextlib.nullcontext() if weights is None else objective.target.apply_weights(weights)
    with applied:
        return grid_losses(model, latents, range(len(places)), conditions)


def generator_objective(
    model: LatentDiffusion,
    net: Hypernetwork,
    config: GeneratorConfig,
    dataset: Any,
    validation: Any,
    run: Path,
    on_prepare: PrepareCallback | None = None,
    *,
    loss: Loss | None = None,
    compute: Compute | None = None,
) -> GeneratorObjective:
    """Styles opened and encoded, the hypernetwork bound.

    dataset, validation: a folder of one folder a style, a mapping of styles (see `find_styles`), or a list of `Style`.
    loss, compute: see `GeneratorObjective`.

    Raises:
        UserError: whatever is wrong with them; a step that cannot be cut into styles; a size the model cannot make; a
            hypernetwork that reads a vision model; `text_share` where no style is told in words.
    """
    if net.settings.image_width is not None:
        raise UserError(
            f"{net.name!r} looks at pictures through a vision model too ({net.settings.image_width} wide), and this "
            "training shows it latents alone: make it without vision, processor and image_width, or train it in a loop "
            "of your own (train_hypernetwork)"
        )
    if model.conditioning != "text" or model.inpaints:
        kind = "masks" if model.inpaints else f"{model.conditioning!r}"
        raise UserError(
            f"weights are generated for models that read texts alone, and this one is told {kind}: take another base "
            "model (attention hypernetworks, hyperbrush train, can be trained on it)"
        )
    if config.compile:
        raise UserError(
            "compile: a generator's weights are put onto the UNet anew in each step, which would be compiled each time; "
            "leave it out"
        )
    if config.batch_size % config.pictures_per_style:
        raise UserError(
            f"batch_size {config.batch_size} cannot be cut into styles of {config.pictures_per_style} pictures; take a "
            "multiple"
        )
    if config.size is not None and config.size % model.size_unit:
        raise UserError(
            f"size is {config.size}; this model's pictures have sides that are multiples of {model.size_unit}"
        )
    net.bind(model).size = config.size
    adapters = config.objective != "denoising"

    def found(source: Any, adapters: bool) -> list[Style] | list[FoundStyle]:
        if isinstance(source, list | tuple) and all(isinstance(s, Style) for s in source):
            return list(source)
        return find_styles(source, config.size or model.image_size, adapters=adapters)

    def encoded(styles: list[Style] | list[FoundStyle]) -> list[Style]:
        new = [style for style in styles if isinstance(style, FoundStyle)]
        own = [style for style in styles if isinstance(style, Style)]
        return [*own, *(encode_styles(new, model, run / "cache/latents", on_prepare) if new else [])]

    # All that can be refused comes before anything is encoded, which takes long.
    chosen = found(dataset, adapters)
    if config.text_share and not any(style.text for style in chosen):
        raise UserError(
            f"text_share {config.text_share:g} tells styles in words, and none of the {len(chosen)} styles has any: write a "
            f"{ABOUT} into each style's folder, or leave text_share at 0"
        )
    judged = None if validation is None else found(validation, False)
    if config.shared_steps:
        net.decoder.shared_parameters()  # type: ignore[operator]  # or says that this form has none
    styles, held = encoded(chosen), None if judged is None else encoded(judged)
    if held is None and config.validation_share and len(styles) >= 10:
        order = BatchOrder(len(styles), 1, config.seed)
        count = min(len(styles) - 1, max(2, round(config.validation_share * len(styles))))
        out = {order.at(step)[1][0] for step in range(count)}
        held = [style for i, style in enumerate(styles) if i in out]
        styles = [style for i, style in enumerate(styles) if i not in out]
    captions = ["", *(c for s in (*styles, *(held or ())) for i in range(len(s)) for c in s.said(i))]
    texts = cached_texts(model, captions, run / "cache/texts", on_prepare)
    net.requires_grad_(True)
    if net.settings.tasks:
        log.warning(
            "styles are told in pictures and words: the tasks of %r (%s) are not trained",
            net.name,
            ", ".join(net.settings.tasks),
        )
    return GeneratorObjective(
        model, net, config, styles, held_out=held, texts=texts, loss=loss, compute=compute
    )


class _Trained:
    """Within, only the shared factors (True) or only the rest (False) get gradients; None: all."""

    def __init__(self, net: Hypernetwork, own: set[int], shared: bool | None) -> None:
        self.net, self.own, self.shared = net, own, shared
        self.still: list[nn.Parameter] = []

    def __enter__(self) -> None:
        if self.shared is None:
            return
        self.still = [p for p in self.net.parameters() if (id(p) in self.own) != self.shared]
        for parameter in self.still:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter in self.still:
            parameter.requires_grad_(True)


def _picked(weights: GeneratedWeights, rows: Tensor) -> GeneratedWeights:
    """Adapters of a batch by their numbers."""
    factors = {name: Factors(f.down[rows], f.up[rows], f.scale) for name, f in weights.factors.items()}
    return GeneratedWeights(factors, name=weights.name, metadata=weights.metadata)


def _joined(parts: Sequence[GeneratedWeights]) -> GeneratedWeights:
    """Batches one after the other."""
    factors = {
        name: Factors(
            torch.cat([p.factors[name].down for p in parts]),
            torch.cat([p.factors[name].up for p in parts]),
            f.scale,
        )
        for name, f in parts[0].factors.items()
    }
    return GeneratedWeights(factors, name=parts[0].name, metadata=parts[0].metadata)
