"""The hypernetwork: encoder → weight generator → decoder, from a condition to the weights of an adapter."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attaching.target_network import TargetNetwork
from hyperbrush.hypernetworks.generator.condition_sources import ConditionSource
from hyperbrush.hypernetworks.generator.conditions import (
    Condition,
    batch_of,
    conditions_of,
    kinds_of,
)
from hyperbrush.hypernetworks.generator.decoder import HypernetworkDecoder
from hyperbrush.hypernetworks.generator.encoder import HypernetworkEncoder
from hyperbrush.hypernetworks.generator.weight_generator import WeightGenerator
from hyperbrush.hypernetworks.weights.frames import Frames
from hyperbrush.hypernetworks.weights.generated import GeneratedWeights
from hyperbrush.hypernetworks.weights.layers import Target, describe, sd15_targets, select

# What a generator cannot read that never saw such in training, and what to do.
_UNKNOWN = {
    "text": "what words mean: give pictures, or train one with text_share",
    "pictures": "what pictures mean: give what it was trained on",
    "features": "what a vision model sees: leave the vision model out",
}
PARTS = ("encoder", "weight_generator", "decoder")
_OWN = (HypernetworkEncoder, WeightGenerator, HypernetworkDecoder)


@dataclass(frozen=True)
class HypernetworkSettings:
    """All numbers a hypernetwork is built from; see `Hypernetwork`."""

    embedding_dim: int = 768
    hidden_dim: int = 1024
    rank: int = 4
    tokens_per_layer: int | None = None
    output: str = "lora"
    init: str = "bias"
    alpha: float | None = None
    basis: int = 64
    frame_seed: int = 0
    frame_widths: tuple[int, int] = (50, 100)
    trunk: str = "perceiver"
    depth: int = 4
    heads: int = 8
    iterations: int = 1
    text_width: int = 768
    latent_channels: int = 4
    image_width: int | None = None
    tasks: tuple[str, ...] = ()
    patch_size: int = 4
    encoder_depth: int = 1
    condition_dropout: float = 0.1


class Hypernetwork(nn.Module):
    """A condition in, the weights of an adapter out, in one pass.

    Args:
        target_layers: which layers get weights, see `targets.select`; None: all of to_q, to_k, to_v, to_out.
        embedding_dim: width of the condition tokens.
        hidden_dim: width of the weight generator.
        target: a `TargetNetwork` (or a list of `Target`), whose layers these are, of a UNet or transformer; None: Stable
            Diffusion 1.5's.
            See `bind`.
        rank, tokens_per_layer, output, init, alpha, basis: of the `HypernetworkDecoder`.
        frame_seed, frame_widths: of output "lightweight", the inner widths for A and B.
        trunk, depth, heads, iterations: of the `WeightGenerator`.
        text_width, latent_channels, image_width: what the encoder reads; None: as the target's pipeline has them,
            the embedded model's without one.
        tasks: names that `TaskCondition` may have.
        patch_size, encoder_depth: of the `HypernetworkEncoder`.
        condition_dropout: share of the samples that get the null condition in training mode.
        vision, processor: a CLIPVisionModel, Dinov2Model or the like with its image processor, frozen, beside the VAE.
        encoder, weight_generator, decoder: modules in the place of ours; ``net.encoder = …`` does the same.
        size: side at which reference pictures are looked at, in pixels; None: the model's own.
        name, step: carried to files.

    A new hypernetwork is in evaluation mode, and every condition gives ΔW = 0.

    Raises:
        UserError: a setting is impossible, or a pattern of target_layers matches nothing.
    """

    def __init__(
        self,
        target_layers: Collection[str] | None = None,
        embedding_dim: int = 768,
        hidden_dim: int = 1024,
        *,
        target: TargetNetwork | Sequence[Target] | None = None,
        text_width: int | None = None,
        latent_channels: int | None = None,
        image_width: int | None = None,
        vision: Any = None,
        processor: Any = None,
        tasks: Sequence[str] = (),
        encoder: nn.Module | None = None,
        weight_generator: nn.Module | None = None,
        decoder: nn.Module | None = None,
        size: int | None = None,
        name: str = "hypernetwork",
        step: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        for key in settings:
            if key not in HypernetworkSettings.__dataclass_fields__:
                raise unknown_name(
                    "setting of a Hypernetwork", key, HypernetworkSettings.__dataclass_fields__
                )
        self.name, self.step, self.trained, self.size = name, step, False, size
        self.learned: tuple[
            str, ...
        ] = ()  # "pictures", "text": what it was trained to listen to; (): not known
        self.source = _source_of(target, vision, processor)
        self.family = target.family if isinstance(target, TargetNetwork) else ""  # of a transformer, "Flux.1"
        # In a list, out of torch's sight.
        self._target = [target] if isinstance(target, TargetNetwork) else []
        self.targets: list[Target] = []
        self._asked = target_layers
        self.settings = HypernetworkSettings(
            embedding_dim=embedding_dim,
            hidden_dim=hidden_dim,
            text_width=self.source.text_width if text_width is None else text_width,
            latent_channels=self.source.latent_channels if latent_channels is None else latent_channels,
            image_width=self.source.image_width if image_width is None else image_width,
            tasks=tuple(tasks),
            **settings,
        )
        if not 0 <= self.settings.condition_dropout < 1:
            raise UserError(f"condition_dropout {self.settings.condition_dropout} must be from 0 to below 1")
        self._build(self._layers_of(target))
        for part, module in zip(PARTS, (encoder, weight_generator, decoder), strict=True):
            if module is not None:
                setattr(self, part, module)
        self.eval()

    def _layers_of(self, target: TargetNetwork | Sequence[Target] | None) -> list[Target]:
        if target is None:
            return sd15_targets(self._asked)
        return select(target.targets if isinstance(target, TargetNetwork) else target, self._asked)

    def _build(self, targets: list[Target], encoder: bool = True, rest: bool = True) -> None:
        s = self.settings
        self.targets = targets
        tokens = s.tokens_per_layer or s.rank
        if encoder:
            self.encoder: nn.Module = HypernetworkEncoder(
                s.embedding_dim,
                text_width=s.text_width,
                latent_channels=s.latent_channels,
                image_width=s.image_width,
                tasks=s.tasks,
                patch_size=s.patch_size,
                depth=s.encoder_depth,
                heads=s.heads,
            )
        if not rest:
            return
        self.weight_generator: nn.Module = WeightGenerator(
            targets,
            tokens_per_layer=tokens,
            embedding_dim=s.embedding_dim,
            hidden_dim=s.hidden_dim,
            trunk=s.trunk,
            depth=s.depth,
            heads=s.heads,
            iterations=s.iterations,
        )
        self.decoder: nn.Module = HypernetworkDecoder(
            targets,
            rank=s.rank,
            tokens_per_layer=tokens,
            hidden_dim=s.hidden_dim,
            output=s.output,
            init=s.init,
            alpha=s.alpha,
            basis=s.basis,
            frames=Frames(s.frame_seed, *s.frame_widths),
        )

    @property
    def device(self) -> torch.device:
        """Where the hypernetwork lives."""
        return next(self.parameters()).device

    @property
    def layers(self) -> list[str]:
        """Names of the layers it generates weights for."""
        return [target.name for target in self.targets]

    @property
    def target_network(self) -> TargetNetwork:
        """What it was made for or bound to last, with the layers it generates for.

        Raises:
            UserError: nothing yet.
        """
        if not self._target:
            raise UserError(f"{self.name!r} is bound to no model yet: bind it, net.bind(model)")
        target = self._target[0]
        if target.layers != self.layers:
            target = self._target[0] = TargetNetwork(target.source, tuple(self.layers))
        return target

    def check_layers(
        self, target_layers: Collection[str], of: TargetNetwork | Sequence[Target] | None = None
    ) -> None:
        """See that these target_layers of a training mean its own layers.

        of: all layers there are to choose from; None: its own, among which all must be chosen.

        Raises:
            UserError: they mean other layers.
        """
        there = of.targets if isinstance(of, TargetNetwork) else self.targets if of is None else of
        try:
            chosen = select(there, target_layers)
        except UserError as error:
            raise UserError(
                f"target_layers {list(target_layers)} contradict those of {self.name!r}, {describe(self.targets)}: {error}"
            ) from error
        if [layer.name for layer in chosen] != self.layers:
            raise UserError(
                f"target_layers {list(target_layers)} mean {describe(chosen)}; {self.name!r} generates weights for "
                f"{describe(self.targets)}: leave target_layers out, or make the Hypernetwork with them"
            )

    def bind(
        self, target: "TargetNetwork | Any", *, vision: Any = None, processor: Any = None
    ) -> "Hypernetwork":
        """Generate for this target's layers, and read conditions through its pipeline; returns the hypernetwork.

        target: a `TargetNetwork`, or a pipeline or UNet, which one is made of. With the same layers only the encoders
            of texts and pictures change; for other layers (or other widths of what the encoder reads) the parts are
            rebuilt, which only a hypernetwork that was neither trained nor loaded allows.
        vision, processor: as the constructor's.

        Raises:
            UserError: a trained hypernetwork and a target with other layers or widths; or a part that would have to
                be rebuilt is somebody else's module.
        """
        if not isinstance(target, TargetNetwork):
            target = TargetNetwork(target)
        settled = self.trained or self.step > 0
        wanted = self._layers_of(target)
        if settled:
            own = set(self.layers)
            wanted = [layer for layer in target.targets if layer.name in own]
            if wanted != self.targets:
                raise UserError(
                    f"{self.name!r} was trained for {describe(self.targets)}; the target network has "
                    f"{describe(target.targets)}: bind it to the model it was trained for, or make a new one"
                )
        bare = target.source is target.module  # a UNet alone has no encoders to read conditions with
        vision, processor = vision or self.source.vision, processor or self.source.processor
        source = ConditionSource(self.source.given if bare else target.source, vision, processor)
        s = self.settings
        widths = (s.text_width, s.latent_channels, s.image_width)
        there = (*widths[:2], source.image_width or s.image_width)
        if not bare:
            there = (source.text_width, source.latent_channels, there[2])
        if there != widths and settled:
            raise UserError(
                f"{self.name!r} reads (text, latents, vision) of widths {widths}, the model has {there}: bind it to a "
                "model of the family it was trained for"
            )
        self._rebuild(wanted, there)
        self.source, self._target, self.family = source, [target], target.family
        return self

    def _rebuild(self, targets: list[Target], widths: "tuple[int, int, int | None]") -> None:
        """Rebuild what other layers or widths ask for.

        Raises:
            UserError: one of these parts is somebody else's module.
        """
        s = self.settings
        encoder = widths != (s.text_width, s.latent_channels, s.image_width)
        changed = (encoder, targets != self.targets, targets != self.targets)
        for part, kind, rebuilt in zip(PARTS, _OWN, changed, strict=True):
            if rebuilt and type(getattr(self, part)) is not kind:
                raise UserError(
                    f"the {part} is a {type(getattr(self, part)).__name__}, which cannot be built anew for other layers or "
                    f"widths: make a new Hypernetwork(target=…, {part}=…)"
                )
        if any(changed):
            device, training = self.device, self.training
            self.settings = replace(s, text_width=widths[0], latent_channels=widths[1], image_width=widths[2])
            self._build(targets, encoder=changed[0], rest=changed[1])
            self.to(device).train(training)

    def generate_weights(
        self,
        condition: Any = None,
        *,
        drop: Tensor | None = None,
        generator: torch.Generator | None = None,
        name: str | None = None,
    ) -> GeneratedWeights:
        """The weights for a condition, with gradients to the hypernetwork's parameters (`torch.no_grad` saves them).

        condition: a text, a picture or its path, several of them, as they are (see `conditions.conditions_of`); a
            training batch (see `ConditionSource.of_batch`); `TextCondition`, `ImageCondition`, `TaskCondition`; several in a list, of one sample each or of equal
            batches; a (batch, tokens, embedding_dim) tensor; None: the null condition. A single sample gives weights
            without a batch dimension, a batch (also of one) gives weights with one.
        drop: (batch,) bool, True where a sample gets the null condition. None: in training mode drawn with
            ``condition_dropout`` from ``generator`` (the global one if None), else nowhere.
        name: of the weights.

        Raises:
            UserError: no condition, batches that differ, or something the encoder does not read; or, in evaluation mode,
                something it is known not to have learned from.
        """
        if isinstance(condition, Mapping):
            condition = self.source.of_batch(condition)
        conditions = [
            self.source.prepare(one, self.size)
            for one in conditions_of(condition, self.settings.embedding_dim)
        ]
        if not self.training:
            self._check_learned(conditions)
        batch = batch_of(conditions)
        rate = self.settings.condition_dropout
        if drop is None and self.training and rate > 0 and conditions:
            drop = torch.rand(batch or 1, generator=generator) < rate
        tokens, mask = self.encoder(conditions, drop)
        factors = self.decoder(self.weight_generator(tokens, mask))
        weights = GeneratedWeights(factors, name=name or "generated", metadata=self._metadata())
        return weights if batch is not None or (not conditions and drop is not None) else weights[0]

    forward = generate_weights

    def _check_learned(self, conditions: Sequence[Condition]) -> None:
        """See that it learned from what it is told; where nobody knows what from, anything goes.

        Raises:
            UserError: texts, pictures, features of a vision model or a task it never saw in training.
        """
        kinds = {kind for condition in conditions for kind in kinds_of(condition)}
        if not self.learned or not kinds:
            return
        pictures = {"pictures", "features"} & kinds
        if pictures and "features" in self.learned and "features" not in pictures:
            raise UserError(
                f"the generator {self.name!r} was trained with a vision model beside the pictures' latents: give it, "
                "net.bind(model, vision=…, processor=…)"
            )
        nameless = {k for k in kinds if k.startswith("task ")} - {
            f"task {name}" for name in self.settings.tasks
        }
        for kind in sorted(kinds - nameless - set(self.learned)):  # the encoder says which tasks there are
            raise UserError(
                f"the generator {self.name!r} was trained on {', '.join(self.learned)} alone and does not know "
                f"{_UNKNOWN.get(kind, f'its {kind}, which no training has touched')}"
            )

    def _metadata(self) -> dict[str, Any]:
        s = self.settings
        metadata: dict[str, Any] = {"generated_by": self.name, "generator_step": self.step}
        if self.family:
            metadata["family"] = self.family
        if s.output == "lightweight" and isinstance(self.decoder, HypernetworkDecoder):
            metadata["frames"] = f"{s.frame_seed},{s.frame_widths[0]},{s.frame_widths[1]}"
        return metadata

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Compute the weight generator's blocks again in backward instead of keeping what they made.

        Raises:
            UserError: the weight generator is another's module without ``gradient_checkpointing``.
        """
        if not hasattr(self.weight_generator, "gradient_checkpointing"):
            raise UserError(f"{type(self.weight_generator).__name__} has no gradient checkpointing")
        self.weight_generator.gradient_checkpointing = enabled  # type: ignore[assignment]

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write a .safetensors file, whole or not at all: parameters, and settings and layers as JSON in the header.

        dtype: of the numbers, such as torch.float16; None: as they are.

        Raises:
            UserError: another suffix, numbers too large for the dtype, or the file cannot be written.
        """
        from hyperbrush.hypernetworks.files.generator import write

        return write(self, Path(path), dtype)

    @classmethod
    def load(cls, path: str | Path, target: Any = None, **parts: nn.Module) -> "Hypernetwork":
        """Read what `save` wrote, in evaluation mode, on the CPU, in float32.

        target: bound then, see `bind`. encoder, weight_generator, decoder: modules for parts that are not ours.

        Raises:
            UserError: no such file, damaged, of another kind, or a part is missing.
        """
        from hyperbrush.hypernetworks.files.generator import read

        net = read(Path(path), parts)
        return net if target is None else net.bind(target)


def _source_of(target: Any, vision: Any, processor: Any) -> ConditionSource:
    """A pipeline's encoders; those of the embedded model for a UNet alone."""
    has_encoders = isinstance(target, TargetNetwork) and target.source is not target.module
    return ConditionSource(target.source if has_encoders else None, vision, processor)
