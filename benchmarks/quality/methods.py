"""What is compared: adapters of a model, each with the settings it is trained with."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hyperbrush.errors import unknown_name
from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.ldm.models import LatentDiffusion, text
from hyperbrush.ldm.modules.attention_sites import KINDS, attention_sites
from hyperbrush.training.attention.run import NetworkConfig

Settings = Mapping[str, Any]


class Adapter(nn.Module):
    """What a method trains: its parameters that require a gradient, already at work on the model."""

    def text_states(self, captions: Sequence[str]) -> dict[str, Tensor] | None:
        """Text states of captions where the method has its own; None: the model's."""
        return None

    def set_strength(self, strength: float) -> bool:
        """Act at another strength; False where the method has none but 1."""
        return strength == 1

    @property
    def size(self) -> int:
        """Trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


class Hypernetwork(Adapter):
    """An attention hypernetwork at strength 1."""

    def __init__(self, model: LatentDiffusion, network: AttentionHypernetwork) -> None:
        super().__init__()
        self.network = network
        self._attached = attach(model.unet, [(network, 1.0)])

    def set_strength(self, strength: float) -> bool:
        """As a person does."""
        self._attached.set_strengths([strength])
        return True


class Layers(Adapter):
    """Parameters that stand in the UNet itself: LoRA's, or all of them."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet


class Lora(Layers):
    """PEFT's layers in the UNet."""

    def set_strength(self, strength: float) -> bool:
        """As a person does."""
        from peft.tuners.lora import LoraLayer

        for module in self.unet.modules():
            if isinstance(module, LoraLayer):
                module.set_scale("default", strength)
        return True


class TextualInversion(Adapter):
    """So many word vectors, said after every caption but the empty one (Gal et al. 2022, 2208.01618)."""

    def __init__(self, model: LatentDiffusion, vectors: int) -> None:
        super().__init__()
        encoder: Any = model.text_encoder
        self._encoder, self.tokenizer = (encoder,), model.tokenizer
        inner = getattr(encoder, "text_model", encoder)
        table = inner.embeddings.token_embedding.weight
        self.vectors = nn.Parameter(table.detach().mean(0).repeat(vectors, 1))
        self.first = len(table)  # the new words' ids
        inner.embeddings.token_embedding = _Extended(inner.embeddings.token_embedding, self.vectors)

    def text_states(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """States of the captions with the new words at their end."""
        end, new = self.tokenizer.eos_token_id, range(self.first, self.first + len(self.vectors))
        rows = []
        for caption, ids in zip(captions, text.tokenize(self.tokenizer, captions).tolist(), strict=True):
            at = min(ids.index(end), len(ids) - 1 - len(new)) if caption else 0
            rows.append([*ids[:at], *new, end, *ids[at:]][: len(ids)] if caption else ids)
        device = self.vectors.device
        return {"embeddings": text.encode_text(self._encoder[0], torch.tensor(rows, device=device))}


class _Extended(nn.Module):
    def __init__(self, table: nn.Embedding, vectors: Tensor) -> None:
        super().__init__()
        self.table, self._vectors = table, (vectors,)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, torch.cat([self.table.weight, self._vectors[0]]))


def lora(model: LatentDiffusion, budget: int, projections: Sequence[str]) -> Adapter:
    """PEFT's LoRA with its own initialisation, alpha = rank; the rank that comes nearest to the budget."""
    from peft import LoraConfig, inject_adapter_in_model

    of_one_rank = sum(
        p.in_width + p.out_width
        for site in attention_sites(model.unet)
        for p in site.projections
        if p.name in projections
    )
    rank = max(1, round(budget / of_one_rank))
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(projections))
    inject_adapter_in_model(config, model.unet)
    return Lora(model.unet)


def hypernetwork(
    model: LatentDiffusion, budget: int | None, *, own: Sequence[str] = (), **settings: Any
) -> Adapter:
    """A hypernetwork whose hidden layers are scaled to the budget; None: as it is.

    own: which sites have networks of their own instead of their width's: "attn1", "attn2", or "same-width"
        for self-attentions whose pictures are as wide as the texts (in the embedded model both are 128
        wide, which is never so in Stable Diffusion 1, 2 and XL). settings: as of `AttentionHypernetwork`.
    """
    structure = list(settings.pop("layer_structure"))
    widths = _keys(model, own)

    def make(scale: float) -> AttentionHypernetwork:
        scaled = [1, *(s * scale for s in structure[1:-1]), 1]
        return AttentionHypernetwork(widths, layer_structure=scaled, **settings)

    def size(percent: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in make(percent / 100).parameters())

    if budget is None:
        return Hypernetwork(model, make(1))
    least = next(i for i in range(1, 100) if min(widths.values()) * min(structure) * i >= 100)
    above = bisect_left(range(1000), budget, lo=least + 1, key=size)
    return Hypernetwork(model, make(min((above - 1, above), key=lambda i: abs(size(i) - budget)) / 100))


def _keys(model: LatentDiffusion, own: Sequence[str]) -> dict[int | str, int]:
    """Width or site → width, for each network."""
    sites = attention_sites(model.unet)
    of_texts = {s.context_width for s in sites if s.kind == "attn2"}
    found: dict[int | str, int] = {}
    for site in sites:
        same = "same-width" in own and site.kind == "attn1" and site.context_width in of_texts
        key = site.path if same or site.kind in own else site.context_width
        found[key] = site.context_width
    return found


def full(model: LatentDiffusion, budget: int | None) -> Adapter:
    """Every weight of the UNet."""
    model.unet.requires_grad_(True)
    return Layers(model.unet)


@dataclass(frozen=True)
class Method:
    """One method of the study.

    about: one line for the tables; make: (model, budget in parameters) → adapter; rates: to choose from on the
    seen styles; training: settings of `HypernetworkConfig` that are not its defaults; sized: it has the
    budget's size.
    """

    about: str
    make: Callable[[LatentDiffusion, int], Adapter]
    rates: tuple[float, ...]
    training: Settings = field(default_factory=dict)
    sized: bool = True


def _webui(model: LatentDiffusion, budget: int) -> Adapter:
    settings: dict[str, Any] = {"layer_structure": (1, 2, 1), "activation": "relu", "weight_init": "Normal"}
    return hypernetwork(model, None, **settings)


def _default(model: LatentDiffusion, budget: int) -> Adapter:
    settings = NetworkConfig().model_dump()
    own = KINDS if settings.pop("per_site") else ()
    return hypernetwork(model, budget, own=own, **settings)


def _best(model: LatentDiffusion, budget: int) -> Adapter:
    return hypernetwork(model, budget, **BEST)


# What the research on the seen styles found; see the docs' page on quality.
BEST: Settings = {"layer_structure": (1, 0.5, 1), "activation": "relu", "own": ("same-width",)}
UNIFORM: Settings = {"timestep_sampling": "uniform"}  # as the usual trainers of LoRA draw them
WEBUI: Settings = {  # torch's AdamW at a constant rate, no clipping, no average, every caption shown
    **UNIFORM,
    "schedule": "constant",
    "warmup_steps": 0,
    "betas": (0.9, 0.999),
    "max_grad_norm": None,
    "ema_decay": None,
    "condition_dropout": 0.0,
}
VECTORS = 8
KV, QKVO = ("to_k", "to_v"), ("to_q", "to_k", "to_v", "to_out.0")

METHODS: Mapping[str, Method] = {
    "default": Method("our default", _default, (2e-3, 3e-3, 4e-3)),
    "best": Method("our best", _best, (2e-3, 3e-3, 4e-3)),
    "lora-kv": Method("LoRA on k, v", lambda m, b: lora(m, b, KV), (1e-3, 2e-3, 4e-3, 8e-3), UNIFORM),
    "lora-qkvo": Method(
        "LoRA on q, k, v, out", lambda m, b: lora(m, b, QKVO), (1e-3, 2e-3, 4e-3, 8e-3), UNIFORM
    ),
    "lora-stratified": Method(
        "LoRA on q, k, v, out, our timesteps", lambda m, b: lora(m, b, QKVO), (2e-3, 4e-3, 8e-3)
    ),
    "webui": Method("webui defaults, 1,2,1 relu", _webui, (5e-6, 5e-5), WEBUI, sized=False),
    "inversion": Method(
        f"textual inversion, {VECTORS} words",
        lambda m, b: TextualInversion(m, VECTORS),
        (5e-3, 2e-2, 5e-2),
        UNIFORM,
        sized=False,
    ),
    "full": Method("full fine-tuning of the UNet", full, (1e-4, 2e-4, 5e-4), UNIFORM, sized=False),
}


def method(name: str) -> Method:
    """A method by its name.

    Raises:
        UserError: an unknown one.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
