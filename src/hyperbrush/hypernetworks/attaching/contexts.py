"""What the attentions of a UNet really see: contexts and queries of a few generations.

Taken where they arrive at an attention, so they are bare contexts, before any attached network changes
them.  Networks that are attached meanwhile act on the pictures, and so on what later attentions see.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.ldm.modules.attention_sites import find_attentions
from hyperbrush.ldm.util import keyed_generator

if TYPE_CHECKING:
    from hyperbrush.ldm.models import LatentDiffusion

PROMPTS = (
    "portrait of an old woman with a red scarf, soft light",
    "a cat sleeping on a wooden chair",
    "city street at night, neon signs, rain",
    "mountain lake at sunrise, wide landscape, mist",
    "a red sports car in front of a brick wall",
    "bowl of fruit on a table, oil painting",
    "anime girl with blue hair holding an umbrella, full body",
    "rocket flying past a smiling yellow moon, flat icon",
)
_SUBJECTS = (
    "a dog", "two birds on a branch", "a knight on a horse", "a bearded man", "a young woman", "a child with a kite",
    "a castle", "a forest path", "an empty beach", "a sailing ship", "a steam train", "a vase of flowers",
    "a slice of cake", "a robot", "a dragon", "a crowd at a market", "a wooden house in snow", "a blue butterfly",
    "a heart", "a clock tower", "a guitar", "a fish in green water", "a spiral galaxy", "a pair of shoes",
)  # fmt: skip
_MANNERS = (
    "{}, photograph, 35mm, sharp focus",
    "watercolour of {}, pale colours",
    "{} by a window, dramatic light, highly detailed, masterpiece",
    "pencil sketch of {} on white paper",
    "1girl, solo, {}, looking at viewer, best quality",
    "{}",
)
TEXTS = tuple(manner.format(subject) for manner in _MANNERS for subject in _SUBJECTS)
_BATCH = 4


class AttentionCall(NamedTuple):
    """One call of an attention: some queries with all of their context."""

    hidden: Tensor  # (1, queries, query width), what to_q sees
    context: Tensor  # (1, tokens, context width), what to_k and to_v see


@dataclass(frozen=True)
class AttentionInputs:
    """What one attention saw, float32 on the CPU: single contexts for fits, whole calls for errors."""

    contexts: Tensor  # (rows, context width)
    calls: tuple[AttentionCall, ...]


def sample_contexts(
    pipe_or_model: Any, prompts: Sequence[str] | None = None, **settings: Any
) -> dict[str, Tensor]:
    """Site path → contexts (rows, width) that to_k and to_v see; arguments as `sample_attention_inputs`.

    Raises:
        UserError: as `sample_attention_inputs`.
    """
    inputs = sample_attention_inputs(pipe_or_model, prompts, calls=0, **settings)
    return {path: site.contexts for path, site in inputs.items()}


@torch.no_grad()
def sample_attention_inputs(
    pipe_or_model: Any,
    prompts: Sequence[str] | None = None,
    *,
    steps: int = 8,
    seed: int = 0,
    limit: int = 4096,
    negative: str = "",
    guidance_scale: float | None = None,
    sampler: str = "DDIM",
    calls: int = 8,
    queries: int = 64,
) -> dict[str, AttentionInputs]:
    """Draw a few pictures and keep what each attention sees, evenly over steps, prompts and positions.

    pipe_or_model: a diffusers Stable Diffusion pipeline, or LatentDiffusion. prompts: one picture each;
        `PROMPTS` by default. guidance_scale: 4 by default; 1 draws without the negative side.
    limit: rows of context per site at most; calls: whole calls per site; queries: positions of each.
        Memory is bounded by them, whatever is drawn. Prompts are drawn in batches of four; the last picture of
        each (of two or more) gives the whole calls and the others the rows, so that a fit to the rows is
        measured on pictures it has not seen.

    Cross-attention sees texts alone, of which a few pictures show too few for a fit as wide as a context:
    with the default prompts, the encodings of `TEXTS` are added for it.

    Raises:
        UserError: a bare UNet (hand over the pipeline, or contexts where they are asked for); a model that is
            not drawn from text alone, or not at all.
    """
    model = as_model(pipe_or_model)
    texts = list(PROMPTS if prompts is None else prompts)
    if not texts or steps < 1 or limit < 1:
        raise UserError(
            f"nothing to sample contexts from: {len(texts)} prompts, {steps} steps, limit {limit}; "
            "expected one or more of each"
        )
    batches = [texts[i : i + _BATCH] for i in range(0, len(texts), _BATCH)]
    recorders = {
        site.path: _Recorder(site.path, seed, limit, len(batches) * steps, calls, queries)
        for site, _ in find_attentions(model.unet)
    }
    scale: dict[str, Any] = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    with _recording(model.unet, recorders), restored_modes(model):
        for number, batch in enumerate(batches):
            seeds = [seed + number * _BATCH + i for i in range(len(batch))]
            for recorder in recorders.values():
                recorder.pictures = len(batch)
            model.sample(
                batch if model.conditioning == "text" else None,
                count=len(batch),
                seeds=seeds,
                steps=steps,
                sampler=sampler,
                negative=negative,
                output="latents",
                **scale,
            )
        if prompts is None and model.conditioning == "text":
            parts = [TEXTS[i : i + 16] for i in range(0, len(TEXTS), 16)]
            encoded = torch.cat([model.text_conditions(part)["context"] for part in parts])
            for path, recorder in recorders.items():
                if path.endswith("attn2"):
                    recorder.add_texts(encoded)
    return {path: recorder.inputs() for path, recorder in recorders.items()}


def as_model(pipe_or_model: Any) -> "LatentDiffusion":
    """The LatentDiffusion of a pipeline's own parts, or the one handed over.

    Raises:
        UserError: a bare UNet or something else that cannot draw; an inpainting or class-conditioned model.
    """
    from hyperbrush.ldm.models import LatentDiffusion
    from hyperbrush.ldm.models.loading import from_pipeline

    if isinstance(pipe_or_model, LatentDiffusion):
        model = pipe_or_model
    elif hasattr(pipe_or_model, "unet") and hasattr(pipe_or_model, "vae"):
        parts = [part for part in vars(pipe_or_model).values() if isinstance(part, torch.nn.Module)]
        with restored_modes(*parts):
            model = from_pipeline(LatentDiffusion, pipe_or_model)
    else:
        raise UserError(
            f"a {type(pipe_or_model).__name__} alone cannot draw pictures to sample contexts from: hand over "
            "the pipeline (or LatentDiffusion) it belongs to, or contexts"
        )
    config: Any = model.unet.config
    if model.conditioning not in ("text", "none") or (
        config.in_channels != config.out_channels and not model.inpaints
    ):
        raise UserError(
            f"contexts are sampled from pictures drawn from text alone, but this model is conditioned by "
            f"{model.conditioning!r} and its UNet takes {config.in_channels} channels: hand over contexts"
        )
    return model


@dataclass
class _Recorder:
    """What is kept of one attention's calls, by a plan made before."""

    path: str
    seed: int
    limit: int
    expected: int  # calls
    whole: int  # calls to keep whole
    queries: int
    pictures: int = 1  # of the batch being drawn
    rows: list[Tensor] = field(default_factory=list)
    texts: list[Tensor] = field(default_factory=list)
    calls: list[AttentionCall] = field(default_factory=list)
    seen: int = 0

    def add(self, hidden: Tensor, context: Tensor) -> None:
        """Hidden: (batch, tokens, width), context: (batch, tokens, width) of one call."""
        drawn = keyed_generator(self.seed, "contexts", self.path, self.seen)
        share = -(-self.limit // self.expected)
        # The last picture of a batch is kept for whole calls, so that errors are not those of the fit alone.
        last = torch.arange(len(context)) % self.pictures == self.pictures - 1
        fitted = context if self.pictures == 1 else context[~last.to(context.device)]
        self.rows.append(_some(fitted.reshape(-1, fitted.shape[-1]), share, drawn))
        kept = min(self.whole, self.expected)
        if len(self.calls) < kept and self.seen * kept >= len(self.calls) * self.expected:
            rows = last.nonzero().flatten()
            row = int(rows[torch.randint(len(rows), (), generator=drawn)])
            self.calls.append(
                AttentionCall(
                    _some(hidden[row], self.queries, drawn)[None],
                    context[row : row + 1].detach().float().cpu().clone(),
                )
            )
        self.seen += 1

    def add_texts(self, encoded: Tensor) -> None:
        """Encoded texts (batch, tokens, width), where this attention sees such."""
        if self.rows and encoded.shape[-1] == self.rows[0].shape[-1]:
            drawn = keyed_generator(self.seed, "texts", self.path)
            self.texts.append(_some(encoded.reshape(-1, encoded.shape[-1]), self.limit, drawn))

    def inputs(self) -> AttentionInputs:
        """Everything kept; half of the contexts are of the added texts where there are some."""
        if not self.rows:
            raise UserError(f"{self.path} was never called while pictures were drawn: no contexts to take")
        drawn = keyed_generator(self.seed, "limit", self.path)
        texts = [_some(torch.cat(self.texts), -(-self.limit // 2), drawn)] if self.texts else []
        room = self.limit - sum(map(len, texts))
        return AttentionInputs(
            torch.cat([*texts, _some(torch.cat(self.rows), room, drawn)]), tuple(self.calls)
        )


def _some(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` rows of (rows, width), each equally likely, in their order."""
    if len(rows) > count:
        chosen = torch.randperm(len(rows), generator=generator)[:count].sort().values
        rows = rows[chosen.to(rows.device)]
    return rows.detach().float().cpu().clone()


@contextlib.contextmanager
def _recording(unet: torch.nn.Module, recorders: Mapping[str, _Recorder]) -> Iterator[None]:
    handles = []
    try:
        for site, attention in find_attentions(unet):
            handles.append(attention.register_forward_pre_hook(_hook(recorders[site.path]), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(recorder: _Recorder) -> Any:
    def seen(attention: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        context = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
        # IP-Adapter hands over (texts, pictures); pictures have projections of their own.
        context = context[0] if isinstance(context, tuple) else context
        recorder.add(hidden, hidden if context is None else context)

    return seen


@contextlib.contextmanager
def restored_modes(*parts: torch.nn.Module) -> Iterator[None]:
    """Drawing puts a model into evaluation mode; its parts may be a pipeline's that is being trained."""
    modes = [(module, module.training) for part in parts for module in part.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
