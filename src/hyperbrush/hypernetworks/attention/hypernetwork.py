"""Attention hypernetworks, the NovelAI and webui kind: MLPs on what to_k and to_v see.

k = to_k(c + strength·MLP_k(c)), v = to_v(c + strength·MLP_v(c)), with one (key, value) pair of
MLPs per context width, shared by all attentions of that width, or one pair per attention site.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attention.context_network import (
    ContextNetwork,
    NetworkSettings,
    derived_dropout,
)
from hyperbrush.hypernetworks.attention.initialisation import ZERO, check_weight_init, initialise
from hyperbrush.hypernetworks.attention.strengths import Strength, finite
from hyperbrush.ldm.families import SD1
from hyperbrush.ldm.modules.attention_sites import KINDS, AttentionSite, attention_sites
from hyperbrush.ldm.modules.transformer_sites import STREAMS

Key = int | str  # a context width, or the path of one attention site (on a transformer: of one stream in it)
BOTTLENECK = (1, 1 / 16, 1)  # layers of networks for transformers
SD1_WIDTHS = (SD1.cross_width, *SD1.self_widths)  # cross-attention first, as the webui writes them


class NetworkPair(torch.nn.Module):
    """The networks for keys and for values of one context width or one site."""

    def __init__(self, width: int, settings: NetworkSettings) -> None:
        super().__init__()
        self.width = width
        self.key = ContextNetwork(width, settings)
        self.value = ContextNetwork(width, settings)


class AttentionHypernetwork(torch.nn.Module):
    """Networks for contexts of some widths or of some attention sites.

    widths: context widths, each with a network shared by all sites of that width (SD 1.x: 320,
        640, 1280 for self-attention, 768 for cross-attention), or a mapping from site path to its
        context width for one network per site.
    layer_structure: widths of the layers as multiples of the context's, first and last 1.
    activation: a name of `activations.activation_names`; on the last layer only with
        ``activate_output``.
    layer_norm: a LayerNorm after every layer, the last one included.
    dropout_structure: one rate per entry of ``layer_structure``. ``use_dropout`` alone means 0.3
        on the hidden layers (the last one only with ``last_layer_dropout``).
    weight_init: "zero" (no effect at the start), "Normal", "XavierUniform", "XavierNormal",
        "KaimingUniform" or "KaimingNormal"; drawn from torch's global generator.
    skip_connection, upsample_linear: residual layers of the webui's MonkeyPatch extension.
    name, step, metadata: carried to files; ``metadata`` holds texts, numbers, booleans and None,
        with the webui's keys sd_checkpoint, sd_checkpoint_name, optional_info among them.

    A new hypernetwork is in evaluation mode: dropout acts only after ``train()``.

    Raises:
        UserError: a setting is unknown or impossible, a width is not positive, or there is none.
    """

    def __init__(
        self,
        widths: Iterable[int] | Mapping[str, int] | Mapping[Key, int] = SD1_WIDTHS,
        *,
        layer_structure: Sequence[float] = (1, 2, 1),
        activation: str | None = "relu",
        layer_norm: bool = False,
        dropout_structure: Sequence[float] | None = None,
        use_dropout: bool = False,
        last_layer_dropout: bool = False,
        activate_output: bool = False,
        weight_init: str = ZERO,
        skip_connection: bool = False,
        upsample_linear: str | None = None,
        name: str = "hypernetwork",
        step: int = 0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if dropout_structure is None and use_dropout:
            dropout_structure = derived_dropout(layer_structure, last_layer_dropout)
        self.settings = NetworkSettings(
            layer_structure=tuple(layer_structure),
            activation="linear" if activation is None else activation,
            layer_norm=layer_norm,
            dropout_structure=None if dropout_structure is None else tuple(dropout_structure),
            activate_output=activate_output,
            skip_connection=skip_connection,
            upsample_linear=upsample_linear,
        )
        check_weight_init(weight_init, self.settings)
        self.use_dropout = use_dropout or any(p > 0 for p in self.settings.rates)
        self.last_layer_dropout = last_layer_dropout
        self.weight_init = weight_init
        self.name = name
        self.step = step
        self.metadata: dict[str, Any] = dict(metadata or {})
        by_key: dict[Key, int] = {}
        if isinstance(widths, Mapping):
            by_key.update(widths)
        else:
            by_key.update((width, width) for width in widths)
        _check_widths(by_key)
        # Module names bear no dots.
        self._names = {key: str(key).replace(".", "/") for key in by_key}
        self.networks = torch.nn.ModuleDict(
            {self._names[key]: NetworkPair(width, self.settings) for key, width in by_key.items()}
        )
        for _, pair in self.pairs():
            for network in (pair.key, pair.value):
                initialise(network, weight_init, self.settings)
        self.eval()

    @classmethod
    def for_unet(
        cls,
        unet: torch.nn.Module,
        *,
        attn: Collection[str] = KINDS,
        blocks: Collection[str] | None = None,
        per_site: bool = False,
        **settings: Any,
    ) -> "AttentionHypernetwork":
        """Networks for the attentions of a UNet, or for some kinds and blocks of them.

        per_site: one pair of networks per site instead of one per width. settings: as the
        constructor's. ``blocks`` only means something with ``per_site``: networks of a width
        serve all its sites.

        Raises:
            UserError: no site is left; or as the constructor.
        """
        if blocks is not None and not per_site:
            raise UserError(
                "blocks can only be chosen with per_site=True: a network per width serves every "
                "block. "
                "Restrict it when attaching instead: attach(…, blocks=…)"
            )
        sites = attention_sites(unet, attn, blocks)
        if sites and sites[0].family:
            raise UserError(
                f"{type(unet).__name__} is a transformer, not a UNet: use AttentionHypernetwork.for_transformer"
            )
        if per_site:
            return cls({site.path: site.context_width for site in sites}, **settings)
        return cls(sorted({site.context_width for site in sites}), **settings)

    @classmethod
    def for_transformer(
        cls,
        transformer: torch.nn.Module,
        *,
        attn: Collection[str] = KINDS,
        blocks: Collection[str] | None = None,
        layer_structure: Sequence[float] = BOTTLENECK,
        **settings: Any,
    ) -> "AttentionHypernetwork":
        """Networks for the contexts of a diffusion transformer: a pair per block and stream, picture and text.

        One width serves a whole transformer, and 1, 2, 1 at a width of 3,072 is 75 million numbers; hence
        bottlenecks of a sixteenth, one for each site. attn, blocks: which, see `attention_sites`; settings: as the
        constructor's.

        Raises:
            UserError: it is no transformer of a known family, or no site is left; or as the constructor.
        """
        sites = attention_sites(transformer, attn, blocks)
        if sites and not sites[0].family:
            raise UserError(
                f"{type(transformer).__name__} is a UNet, not a transformer: use AttentionHypernetwork.for_unet"
            )
        return cls({s.path: s.context_width for s in sites}, layer_structure=layer_structure, **settings)

    @property
    def widths(self) -> list[int]:
        """Widths that have a network shared by all their sites, ascending."""
        return sorted(key for key in self._names if isinstance(key, int))

    @property
    def sites(self) -> list[str]:
        """Paths of the sites that have a network of their own."""
        return [key for key in self._names if isinstance(key, str)]

    def pairs(self) -> Iterator[tuple[Key, NetworkPair]]:
        """Every pair of networks with its width or site path."""
        for key, name in self._names.items():
            pair = self.networks[name]
            assert isinstance(pair, NetworkPair)
            yield key, pair

    def network_for(self, width: int, site: str | AttentionSite | None = None) -> NetworkPair | None:
        """The networks for a context: the site's own, else those of its width, else None."""
        path = site.path if isinstance(site, AttentionSite) else site
        for key in (path, width):
            if key in self._names:
                pair = self.networks[self._names[key]]
                assert isinstance(pair, NetworkPair)
                if pair.width == width:
                    return pair
        return None

    def changes(self, site: AttentionSite) -> dict[str, ContextNetwork]:
        """Projection of a site → the network that acts on what it sees; empty where there is none."""
        pair = self.network_for(site.context_width, site)
        return {} if pair is None else {"to_k": pair.key, "to_v": pair.value}

    def transform(
        self,
        context: torch.Tensor,
        strength: float | torch.Tensor = 1.0,
        site: str | AttentionSite | None = None,
        rows_per_picture: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What to_k and to_v see instead of ``context``.

        context: (batch, tokens, width). strength: any finite number, or a 0-dim tensor. site: the
        attention, where the hypernetwork has networks per site. rows_per_picture: see
        `apply_networks`.
        Returns (key_context, value_context), each with the context's shape and dtype.

        Raises:
            UserError: no network for this width or site, the context is no such tensor, or the
                strength is not finite.
        """
        if context.ndim != 3 or not context.is_floating_point():
            raise UserError(
                f"context is {context.dtype} of shape {tuple(context.shape)}: "
                "expected a floating-point tensor (batch, tokens, width)"
            )
        pair = self.network_for(context.shape[-1], site)
        if pair is None:
            where = "" if site is None else f" at {site.path if isinstance(site, AttentionSite) else site}"
            raise UserError(
                f"{self.name!r} has no network for a context {context.shape[-1]} wide{where}: "
                f"it has networks for {self.describe_keys()}"
            )
        if not isinstance(strength, torch.Tensor):
            strength = finite(strength)
        key = apply_networks(context, [(pair.key, strength)], rows_per_picture)
        return key, apply_networks(context, [(pair.value, strength)], rows_per_picture)

    forward = transform

    def describe_keys(self) -> str:
        """The widths and the number of sites that have networks, in words."""
        parts = [f"widths {', '.join(map(str, self.widths))}"] if self.widths else []
        if self.sites:
            wide = sorted({pair.width for key, pair in self.pairs() if isinstance(key, str)})
            parts.append(f"{len(self.sites)} sites of widths {', '.join(map(str, wide))}")
        return " and ".join(parts)

    def save(self, path: str | Path) -> Path:
        """Write a file, whole or not at all: .safetensors (our form) or .pt (the webui's).

        Raises:
            UserError: another suffix, networks per site in a .pt, or the file cannot be written.
        """
        from hyperbrush.hypernetworks.files import save

        return save(self, path)


def apply_networks(
    context: torch.Tensor,
    networks: Iterable[tuple[ContextNetwork, float | torch.Tensor | Strength]],
    rows_per_picture: int | None = None,
) -> torch.Tensor:
    """Compose c ← c + strength·MLP(c) for each network in order, each on the output of the one
    before.

    context: (batch, tokens, width); same shape and dtype back. Computed in the highest precision of
    the context and the networks. A network whose strength is the number 0 is left out: no-op,
    exactly. A strength of one number per picture acts on the rows of each (`strengths.PerPicture`).
    rows_per_picture: only read by softmax-like activations, which the webui computes over the
    batch: how many rows are one picture's (2 with classifier-free guidance); None: all of them.

    Raises:
        UserError: strengths for n pictures, and a batch that is not a multiple of n.
    """
    x = context
    for network, strength in networks:
        if isinstance(strength, Strength):
            # Compiled code must serve every strength; elsewhere a strength of 0 costs nothing.
            if not torch.compiler.is_compiling() and not strength.acts:
                continue
            if strength.per_picture:
                x = _per_picture(x, network, strength, rows_per_picture)
                continue
            strength = strength.on(x.device)
        if isinstance(strength, torch.Tensor) or strength != 0:
            x = add_change(x, strength, network(x, rows_per_picture))
    return x.to(context.dtype)


def add_change(context: torch.Tensor, strength: float | torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Context + strength·change, in the change's precision."""
    return context.to(change.dtype) + strength * change


def _per_picture(
    x: torch.Tensor, network: ContextNetwork, strength: Strength, rows_per_picture: int | None
) -> torch.Tensor:
    of_rows = strength.of_rows(x)
    if torch.compiler.is_compiling() or strength.acts_everywhere or network.over_the_batch:
        change = network(x, rows_per_picture)
        return add_change(x, of_rows.to(change.dtype), change)
    rows = of_rows.flatten().nonzero().flatten()
    change = network(x[rows], rows_per_picture)
    x = x.to(change.dtype)
    return x.index_add(0, rows, of_rows[rows].to(change.dtype) * change)


def _check_widths(by_key: Mapping[Key, int]) -> None:
    if not by_key:
        raise UserError("a hypernetwork needs at least one context width or site, but none was given")
    for key, width in by_key.items():
        if isinstance(width, bool) or not isinstance(width, int) or not 0 < width <= 65536:
            at = f" of site {key}" if isinstance(key, str) else ""
            raise UserError(f"width {width!r}{at} is impossible: expected a whole number from 1 to 65536")
        if isinstance(key, int) and key != width:
            raise UserError(f"the network of width {key} cannot have contexts {width} wide")
        if isinstance(key, str) and key.rpartition(".")[2] not in (*KINDS, *STREAMS):
            raise unknown_name(
                "site", key, (), hint="; a site is a path that ends in attn1 or attn2, or in picture or text"
            )
