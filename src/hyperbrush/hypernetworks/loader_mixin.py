"""Hypernetworks as methods of diffusers' pipelines, with the verbs that LoRA has there."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from hyperbrush.errors import UserError, unknown_name
from hyperbrush.hypernetworks.attaching.attached import Attached
from hyperbrush.hypernetworks.attaching.uses import Adapter, Use, unet_of
from hyperbrush.hypernetworks.attention.strengths import StrengthLike
from hyperbrush.hypernetworks.files.adapters import load
from hyperbrush.hypernetworks.files.packed import split
from hyperbrush.ldm.modules.attention_sites import KINDS

Pipe = TypeVar("Pipe")


@dataclass
class _Loaded:
    attached: Attached
    uses: dict[str, Use] = field(default_factory=dict)  # by name; those at work are the attached ones


class HypernetworkLoaderMixin:
    """Methods of a diffusers pipeline: ``class Mine(HypernetworkLoaderMixin, StableDiffusionPipeline)``.

    For a pipeline that is there already see `with_hypernetworks`. They act on the UNet or transformer that the pipeline has when the
    first is loaded, as `attach` does; what `attach` refuses is refused.
    """

    @property
    def hypernetworks(self) -> Attached:
        """Those at work, with all that `Attached` can do (fuse, list, …)."""
        return self._hypernetworks_loaded().attached

    def load_hypernetwork(
        self,
        hypernetwork: Adapter | str | Path,
        adapter_name: str | None = None,
        adapter_weight: StrengthLike = 1.0,
        *,
        attn: Collection[str] = KINDS,
        blocks: Collection[str] | None = None,
        guidance: str = "both",
    ) -> str:
        """Load a hypernetwork, which acts at once, on what those before make; returns its name.

        hypernetwork: a file of any format (`hyperbrush.load`), or one that is loaded. adapter_name: its name here, by default the
        file's without suffix. adapter_weight: its strength, a number or a schedule, and attn, blocks, guidance: see `Use`.

        Raises:
            UserError: as `hyperbrush.load` and `attach`; or the name is taken. Nothing was changed then.
        """
        loaded = self._hypernetworks_loaded()
        if isinstance(hypernetwork, Adapter):
            adapter, name = hypernetwork, hypernetwork.name
        else:
            path = Path(hypernetwork)
            adapter, name = load(path), path.stem if split(path) is None else path.name
        name = adapter_name or name
        if name in loaded.uses:
            raise UserError(
                f"a hypernetwork {name!r} is loaded already: give this one another adapter_name, or delete that one first"
            )
        use = Use(adapter, adapter_weight, attn, blocks, name, guidance)
        loaded.attached.load(adapter, adapter_weight, attn=attn, blocks=blocks, name=name, guidance=guidance)
        loaded.uses[name] = use
        return name

    def set_hypernetworks(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: StrengthLike | list[StrengthLike] | None = None,
    ) -> None:
        """Let these act, in this order, and no others; all stay loaded.

        adapter_weights: a strength for each (see `Use`), or one for all; 1 by default. Where the same act in the same order,
        nothing is recompiled and no network computed again for a new strength.

        Raises:
            UserError: an unknown name, one given twice, another number of strengths, one that is impossible. Nothing was changed then.
        """
        loaded = self._hypernetworks_loaded()
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = adapter_weights if isinstance(adapter_weights, list) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise UserError(f"got {len(weights)} strengths for {len(names)} hypernetworks: expected one each")
        for place, name in enumerate(names):
            if name not in loaded.uses:
                raise unknown_name("attached hypernetwork", name, loaded.uses)
            if name in names[:place]:
                raise UserError(f"the hypernetwork {name!r} is given twice: expected each once")
        strengths: list[StrengthLike] = [1.0 if weight is None else weight for weight in weights]
        if names == loaded.attached.names:
            loaded.attached.set_strengths(strengths)
        else:
            pairs = zip(names, strengths, strict=True)
            loaded.attached.set_hypernetworks([replace(loaded.uses[name], strength=s) for name, s in pairs])

    def get_active_hypernetworks(self) -> list[str]:
        """Names of those that act, in the order they compose; none while disabled."""
        attached = self.hypernetworks
        return attached.names if attached.enabled else []

    def get_list_hypernetworks(self) -> dict[str, list[str]]:
        """Names of all that are loaded, by the pipeline's part: {"unet": ["water", "ink"]}."""
        part = "transformer" if getattr(self, "unet", None) is None else "unet"
        names = list(self._hypernetworks_loaded().uses)
        return {part: names} if names else {}

    def disable_hypernetworks(self) -> None:
        """Let none act, at no cost, until `enable_hypernetworks`.

        Raises:
            UserError: they are fused.
        """
        self.hypernetworks.disable()

    def enable_hypernetworks(self) -> None:
        """Let those that were at work act again."""
        self.hypernetworks.enable()

    def delete_hypernetworks(self, adapter_names: str | Sequence[str]) -> None:
        """Take some away.

        Raises:
            UserError: an unknown name, of which nothing was changed; or they are fused.
        """
        loaded = self._hypernetworks_loaded()
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in names:
            if name not in loaded.uses:
                raise unknown_name("attached hypernetwork", name, loaded.uses)
        for name in dict.fromkeys(names):
            if name in loaded.attached.names:
                loaded.attached.unload(name)
            del loaded.uses[name]

    def unload_hypernetworks(self) -> None:
        """Take all away: the UNet or transformer is as it was found, bit for bit."""
        self.hypernetworks.detach()
        del self._hypernetworks

    def _hypernetworks_loaded(self) -> _Loaded:
        pipe: Any = self
        loaded: _Loaded | None = vars(self).get("_hypernetworks")
        if loaded is None or loaded.attached.detached:
            self._hypernetworks = loaded = _Loaded(Attached(pipe))
        return loaded


def with_hypernetworks(pipe: Pipe) -> Pipe:
    """The same diffusers pipeline, with the methods of `HypernetworkLoaderMixin`.

    Its class becomes one of the same name that has them too; it saves as before.

    Raises:
        UserError: it has no UNet or transformer.
    """
    one: Any = pipe
    kind = type(one)
    if not issubclass(kind, HypernetworkLoaderMixin):
        unet_of(one)
        about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        one.__class__ = type(kind.__name__, (HypernetworkLoaderMixin, kind), about)
    return pipe
