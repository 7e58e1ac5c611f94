"""The nodes: hypernetworks by file and by prompt, and schedules of their strength."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import folder_paths

from hyperbrush.errors import UnknownHypernetwork, UserError
from hyperbrush.generation.tags import lora_tags, near_tags, parse_tags
from hyperbrush.hypernetworks.files import SUFFIXES, packed

FOLDER = "hypernetworks"  # of ComfyUI's models, and of extra_model_paths.yaml
CATEGORY = "loaders/hyperbrush"
SCHEDULE = "HYPERBRUSH_SCHEDULE"  # a factor by the progress of the sampling, 0 to 1
ATTENTIONS = {"both": ("attn1", "attn2"), "cross": ("attn2",), "self": ("attn1",)}
Schedule = Callable[[float], float]
Stamp = tuple[str, int, int]


class HyperbrushLoader:
    """One hypernetwork on a model; several by several of these, in their order."""

    DESCRIPTION = (
        "Loads a hypernetwork as the webui computes it: every format, structure and activation. Put several one after the other. "
        "Also generated weights, and members of packs."
    )
    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("MODEL", "STRING"), ("model", "reached")
    OUTPUT_TOOLTIPS = (
        "The model with the hypernetwork.",
        "Which attentions the hypernetwork reaches, in words.",
    )

    def __init__(self) -> None:
        self._files = Files()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Stable Diffusion 1.x, 2.x or XL."}),
                "hypernetwork": (
                    names(),
                    {
                        "tooltip": "A file in models/hypernetworks, or one of a pack (looks.pack.safetensors/ink)."
                    },
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -10.0,
                        "max": 10.0,
                        "step": 0.01,
                        "tooltip": "How strongly it acts; 0 is without it, negative is away from it.",
                    },
                ),
            },
            "optional": {
                "schedule": (
                    SCHEDULE,
                    {"tooltip": "How the strength changes over the steps: it is multiplied by this."},
                ),
                "attention": (
                    list(ATTENTIONS),
                    {"tooltip": "Where it acts: cross reads the prompt, self the picture."},
                ),
                "guidance": (
                    ["both", "conditional"],
                    {
                        "tooltip": "conditional: on the prompt's side of guidance alone, so that the style is purer."
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, hypernetwork: str, **_: Any) -> Stamp:
        """The file's time and size, so that one written anew is read anew."""
        return stamp(path_of(hypernetwork))

    def load(
        self,
        model: Any,
        hypernetwork: str,
        strength: float,
        schedule: Schedule | None = None,
        attention: str = "both",
        guidance: str = "both",
    ) -> tuple[Any, str]:
        """The model with the hypernetwork, and what it reached.

        Raises:
            UserError: as `path_of`, `hyperbrush.load` and `patches.attach`.
        """
        from hyperbrush.hypernetworks import Use

        from .patches import attach

        (adapter,) = self._files.get([path_of(hypernetwork)])
        term = strength if schedule is None else scaled(schedule, strength)
        return attach(model, Use(adapter, term, ATTENTIONS[attention], None, None, guidance))


class HyperbrushPrompt:
    """The hypernetworks that a prompt's tags name, as in the webui."""

    DESCRIPTION = (
        "Takes <hypernet:NAME:STRENGTH> tags out of a prompt and puts these hypernetworks onto the model, in their order. Also "
        "<hypernet:NAME:0.7:start=0.2:end=0.8:ramp=0:attn=cross:blocks=mid+up:guidance=conditional>."
    )
    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("MODEL", "STRING", "STRING"), ("model", "text", "reached")
    OUTPUT_TOOLTIPS = (
        "The model with the hypernetworks.",
        "The prompt without the tags, for CLIP Text Encode.",
        "Which attentions each hypernetwork reaches, in words.",
    )

    def __init__(self) -> None:
        self._files = Files()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Stable Diffusion 1.x, 2.x or XL."}),
                "text": (
                    "STRING",
                    {
                        "multiline": True,
                        "dynamicPrompts": True,
                        "tooltip": "A prompt with tags such as <hypernet:water:0.7>.",
                    },
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, text: str | None = None, **_: Any) -> list[Stamp]:
        """The files' times and sizes; none of a text that another node makes."""
        return [stamp(find(tag.name)) for tag in parse_tags(text or "")[1]]

    def load(self, model: Any, text: str) -> tuple[Any, str, str]:
        """The model with the hypernetworks, the text without their tags, and what they reached.

        Raises:
            UserError: a tag that makes no sense, is nearly one or is a LoRA's; an unknown name; as `HyperbrushLoader.load`.
        """
        from hyperbrush.generation.prompt_networks import term_of
        from hyperbrush.hypernetworks import Use

        from .patches import attach

        bare, tags = parse_tags(text)
        if near := near_tags(bare):
            raise UserError(f"{near[0]!r:.90} is no tag, but nearly: write <hypernet:NAME:STRENGTH>")
        if loras := lora_tags(text):
            raise UserError(
                f"<lora:{loras[0].name}> stays without effect here: take it out of the text and use ComfyUI's LoraLoader"
            )
        said = []
        tags = [tag for tag in tags if term_of(tag) != 0]
        paths = [find(tag.name) for tag in tags]
        for tag, adapter in zip(tags, self._files.get(paths), strict=True):
            use = Use(adapter, term_of(tag), tag.attn, tag.blocks, tag.name, tag.guidance)
            model, reached = attach(model, use)
            said.append(reached)
        return model, bare.strip(), "\n".join(said)


class HyperbrushWindow:
    """A schedule: only from one share of the steps to another."""

    DESCRIPTION = "The hypernetwork acts only between two shares of the sampling steps."
    CATEGORY, FUNCTION = CATEGORY, "make"
    RETURN_TYPES, RETURN_NAMES = (SCHEDULE,), ("schedule",)
    OUTPUT_TOOLTIPS = ("For the schedule of Load Hypernetwork.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {
            "required": {
                "start": _number(0.0, 0.0, 1.0, "From here on: 0 is the first step, 1 the last."),
                "end": _number(1.0, 0.0, 1.0, "Until here: 0 is the first step, 1 the last."),
            }
        }

    def make(self, start: float, end: float) -> tuple[Schedule]:
        """The schedule.

        Raises:
            UserError: it ends before it starts.
        """
        from hyperbrush.hypernetworks import Window

        return (Window(1.0, start, end),)


class HyperbrushRamp:
    """A schedule: from one factor to another over the steps."""

    DESCRIPTION = "The hypernetwork's strength goes from one factor to another over the sampling steps."
    CATEGORY, FUNCTION = CATEGORY, "make"
    RETURN_TYPES, RETURN_NAMES = (SCHEDULE,), ("schedule",)
    OUTPUT_TOOLTIPS = ("For the schedule of Load Hypernetwork.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's description of the inputs."""
        return {
            "required": {
                "first": _number(0.0, -10.0, 10.0, "The factor of the strength until start."),
                "last": _number(1.0, -10.0, 10.0, "The factor of the strength from end on."),
                "start": _number(
                    0.0, 0.0, 1.0, "Where it begins to change: 0 is the first step, 1 the last."
                ),
                "end": _number(1.0, 0.0, 1.0, "Where it has changed: 0 is the first step, 1 the last."),
            }
        }

    def make(self, first: float, last: float, start: float, end: float) -> tuple[Schedule]:
        """The schedule.

        Raises:
            UserError: it ends where or before it starts.
        """
        from hyperbrush.hypernetworks import Ramp

        return (Ramp(first, last, start, end),)


class Files:
    """Adapters by file; those of the last call are kept, until their files change."""

    def __init__(self) -> None:
        self._kept: dict[Stamp, Any] = {}

    def get(self, paths: Iterable[Path]) -> list[Any]:
        """The adapter of each file, read where it is new.

        Raises:
            UserError: as `hyperbrush.load`.
        """
        import torch

        from hyperbrush.hypernetworks import load

        stamps = [(path, stamp(path)) for path in paths]
        before, self._kept = self._kept, {}
        with torch.inference_mode(False):  # tensors made in it are of no use outside of it
            for path, key in stamps:
                self._kept[key] = before[key] if key in before else load(path)
                self._kept[key].name = path.name  # what errors call it
        return [self._kept[key] for _, key in stamps]


def names() -> list[str]:
    """ComfyUI's hypernetwork files that hyperbrush reads; of a pack each member, PACK/MEMBER."""
    found: list[str] = []
    for name in folder_paths.get_filename_list(FOLDER):
        if not name.lower().endswith(SUFFIXES):
            continue
        members = packed.members(path_of(name)) if packed.is_pack(Path(name)) else {}
        found += [f"{name}/{member}" for member in members] or [name]
    return found


def path_of(name: str) -> Path:
    """The path of a name of `names`.

    Raises:
        UserError: there is no such file.
    """
    found = packed.split(Path(name))
    file, member = (name, "") if found is None else (str(found[0]), found[1])
    path = folder_paths.get_full_path(FOLDER, file)
    if path is None:
        raise UserError(f"there is no file {file} in models/{FOLDER}: press R to read the folder again")
    return Path(path) / member


def find(name: str) -> Path:
    """The file that a prompt's tag means, in the first of ComfyUI's folders that has it.

    Raises:
        UserError: none has it, or several files of one have this name.
    """
    from hyperbrush.hypernetworks import HypernetworkLibrary

    unknown = UnknownHypernetwork(f"there is no folder models/{FOLDER}")
    for number, folder in enumerate(folder_paths.get_folder_paths(FOLDER)):
        try:
            return HypernetworkLibrary(folder).find(name)
        except UnknownHypernetwork as error:
            unknown = unknown if number else error
    raise unknown


def stamp(path: Path) -> Stamp:
    """What changes when a file does."""
    about = packed.file_of(path).stat()
    return str(path), about.st_mtime_ns, about.st_size


def scaled(schedule: Schedule, strength: float) -> Schedule:
    """The strength by progress."""
    return lambda progress: strength * schedule(progress)


def _number(default: float, least: float, most: float, tooltip: str) -> tuple[str, dict[str, Any]]:
    return "FLOAT", {"default": default, "min": least, "max": most, "step": 0.01, "tooltip": tooltip}


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "HyperbrushLoader": HyperbrushLoader,
    "HyperbrushPrompt": HyperbrushPrompt,
    "HyperbrushWindow": HyperbrushWindow,
    "HyperbrushRamp": HyperbrushRamp,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "HyperbrushLoader": "Load Hypernetwork (hyperbrush)",
    "HyperbrushPrompt": "Hypernetworks from Prompt (hyperbrush)",
    "HyperbrushWindow": "Hypernetwork Schedule: Window",
    "HyperbrushRamp": "Hypernetwork Schedule: Ramp",
}
