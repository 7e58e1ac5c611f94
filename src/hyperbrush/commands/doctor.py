"""`hyperbrush doctor`: does everything hold on this machine, this model and these files?  One page to paste.

Exactness (files, transform, UNet, fusing, detaching), speed and a picture comparison, on the user's own
checkpoint and hypernetworks.
"""

import copy
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hyperbrush.errors import UserError
from hyperbrush.files import atomic_path, sha256, write_text
from hyperbrush.generation.grids import labelled_grid
from hyperbrush.hypernetworks import AttentionHypernetwork, attach
from hyperbrush.hypernetworks.attention.affine import is_affine
from hyperbrush.hypernetworks.files import load_attention
from hyperbrush.hypernetworks.files.adapters import is_generated_file
from hyperbrush.hypernetworks.files.packed import file_of
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.conditioning import any_conditions
from hyperbrush.ldm.models.pipelines import PipelineDiffusion
from hyperbrush.ldm.modules.attention_sites import attention_sites, find_attentions
from hyperbrush.ldm.modules.transformer_sites import find_transformer
from hyperbrush.ldm.pictures import to_pictures

# Relative errors ‖out − ref‖ / ‖ref‖ that rounding alone explains, by the precision computed in.
ROUNDING = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
FUSING = 1e-4  # fused weights are rounded once more
READ, OTHER = "read", "for another model"
PROMPTS = ("a lighthouse by the sea", "portrait of a woman, detailed")


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    found: str
    sound: bool = True


@dataclass
class Examination:
    """Everything found, and the pictures."""

    environment: list[Finding] = field(default_factory=list)
    files: dict[str, list[Finding]] = field(default_factory=dict)
    pictures: Image.Image | None = None

    @property
    def wrong(self) -> list[tuple[str, Finding]]:
        """What does not hold, with the file it is about."""
        every = {"environment": self.environment, **self.files}
        return [(name, f) for name, found in every.items() for f in found if not f.sound]

    @property
    def files_alone(self) -> bool:
        """Whether all that is wrong is that files are broken."""
        return all(f.what == READ for _, f in self.wrong)

    @property
    def of_other_models(self) -> list[str]:
        """Files that are sound and do not fit the model: nothing is wrong with them."""
        return [name for name, found in self.files.items() if any(f.what == OTHER for f in found)]

    def page(self) -> str:
        """The page, as Markdown."""
        lines = ["# hyperbrush doctor", ""]
        wrong = "; ".join(f"{name}: {f.what}" for name, f in self.wrong)
        lines += [f"**Look at:** {wrong}" if wrong else "Everything holds.", ""]
        if self.of_other_models:
            lines += [f"For other models than this one: {', '.join(self.of_other_models)}", ""]
        for title, found in (("Environment", self.environment), *self.files.items()):
            lines += [f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {f.what} | {'' if f.sound else '**wrong** '}{_cell(f.found)} |" for f in found]
            lines.append("")
        return "\n".join(lines)

    def save(self, out: Path) -> Path:
        """Write the page, and the pictures beside it as a PNG; returns the page's path."""
        write_text(out, self.page())
        if self.pictures is not None:
            with atomic_path(out.with_suffix(".png")) as temporary:
                self.pictures.save(temporary)
        return out


def examine(
    model: LatentDiffusion,
    files: Sequence[Path],
    *,
    name: str = "",
    prompts: Sequence[str] = PROMPTS,
    steps: int = 20,
    seed: int = 0,
    pairs: int = 5,
    on_progress: Callable[[str], None] | None = None,
) -> Examination:
    """Look at a model and hypernetwork files.

    name: how the model was asked for. steps, seed: of the pictures. pairs: bare and attached UNet steps timed
    in turn. on_progress: told what is looked at now.

    Raises:
        UserError: the model cannot draw at all.
    """
    tell = on_progress or (lambda text: None)
    found = Examination(list(_environment(model, name)))
    columns: list[tuple[str, AttentionHypernetwork | None]] = [("without", None)]
    names = Counter(path.name for path in files)
    for path in files:
        label = path.name if names[path.name] == 1 else str(path)
        tell(f"looking at {path.name}")
        try:
            if is_generated_file(path):
                found.files[label] = [Finding("kind", "generated weights: not examined here")]
                continue
            hypernetwork = load_attention(path)
        except UserError as error:
            found.files[label] = [Finding(READ, str(error), sound=False)]
            continue
        found.files[label] = list(_file(file_of(path), hypernetwork))
        try:
            found.files[label] += _on_the_unet(model, hypernetwork, pairs)
        except UserError as error:
            found.files[label].append(Finding(OTHER, str(error)))
            continue
        columns.append((hypernetwork.name, hypernetwork))
    tell("drawing")
    found.pictures, drawn = _pictures(model, columns, prompts, steps, seed)
    found.environment += drawn
    return found


def _environment(model: LatentDiffusion, name: str) -> Iterator[Finding]:
    import accelerate
    import diffusers
    import transformers

    from hyperbrush import __version__

    parameter = next(model.unet.parameters())
    device = parameter.device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    yield Finding(
        "versions",
        f"hyperbrush {__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}, transformers "
        f"{transformers.__version__}, accelerate {accelerate.__version__}, Python {platform.python_version()}",
    )
    yield Finding("machine", f"{platform.platform()}; {device} ({chip}), {os.cpu_count()} cores")
    sites = attention_sites(model.unet)
    count = sum(p.numel() for p in model.unet.parameters())
    widths = sorted({s.context_width for s in sites})
    family = sites[0].family if sites else ""
    kind = f"{family} transformer" if family else "UNet"
    streams = Counter(s.stream for s in sites) if family else {}
    reading = ", ".join(f"{n} of the {stream}" for stream, n in sorted(streams.items()))
    yield Finding(
        "model",
        f"{Path(name).name or type(model).__name__}, {str(parameter.dtype).removeprefix('torch.')}, {kind} of "
        f"{count / 1e6:.1f} M parameters, {len(sites)} attentions{f' ({reading})' if reading else ''} with contexts "
        f"{', '.join(map(str, widths))} wide",
    )


def _file(path: Path, hypernetwork: AttentionHypernetwork) -> Iterator[Finding]:
    s = hypernetwork.settings
    size = sum(p.numel() for p in hypernetwork.parameters())
    yield Finding(
        "file",
        f"{path.suffix}, {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256(path)[:10]}, step {hypernetwork.step}",
    )
    yield Finding(
        "networks",
        f"{hypernetwork.describe_keys()}; {','.join(f'{x:g}' for x in s.layer_structure)} {s.activation}"
        f"{', LayerNorm' if s.layer_norm else ''}{', output activated' if s.activate_output else ''}, "
        f"{size / 1e6:.2f} M parameters",
    )
    with tempfile.TemporaryDirectory() as scratch:
        again = load_attention(hypernetwork.save(Path(scratch, "again.safetensors")))
    own, copied = hypernetwork.state_dict(), again.state_dict()
    equal = own.keys() == copied.keys() and all(torch.equal(own[k], copied[k]) for k in own)
    equal &= again.settings == replace(s, dropout_structure=again.settings.dropout_structure)
    equal &= again.settings.rates == s.rates  # none may be written as zeros
    yield Finding("to .safetensors and back", "bit-equal" if equal else "differs", sound=equal)


@torch.no_grad()
def _on_the_unet(
    model: LatentDiffusion, hypernetwork: AttentionHypernetwork, pairs: int
) -> Iterator[Finding]:
    bound = ROUNDING.get(model.dtype, ROUNDING[torch.float32])
    error = _transform_error(hypernetwork, model.dtype)
    yield Finding("transform against float64", f"{error:.1e} (bound {bound:g})", sound=error <= bound)
    step = _one_step(model)
    bare = step()
    with attach(model, hypernetwork) as attached:
        yield Finding("reached", str(attached.applied))
        out = step()
        if find_transformer(model.unet) is None:
            error = relative_error(out, _plainly(model, hypernetwork, step, attached))
            yield Finding(
                "UNet against the plain way", f"{error:.1e} (bound {bound:g})", sound=error <= bound
            )
        yield Finding("effect on the denoiser's output", f"{relative_error(out, bare):.3f} of its size")
        if all(is_affine(n) for _, pair in hypernetwork.pairs() for n in (pair.key, pair.value)):
            begin = time.perf_counter()
            attached.fuse()
            seconds = time.perf_counter() - begin
            error, limit = relative_error(step(), out), max(bound, FUSING)
            attached.unfuse()
            yield Finding(
                "fused",
                f"{error:.1e} from attached (bound {limit:g}), in {seconds:.1f} s",
                sound=error <= limit,
            )
    yield Finding("after detaching", "bit-identical" if torch.equal(step(), bare) else "differs")
    ratios = [_ratio(model, hypernetwork, step) for _ in range(pairs + 1)][1:]  # the first warms up
    yield Finding(
        "time of a step",
        f"{statistics.median(ratios):.3f} of the bare model's ({min(ratios):.3f} to {max(ratios):.3f}, "
        f"{pairs} pairs)",
    )


def relative_error(out: Tensor, reference: Tensor) -> float:
    """‖out − reference‖ / ‖reference‖."""
    exact, wide = reference.cpu().double(), out.cpu().double()  # Apple's GPUs have no float64
    return float((wide - exact).norm() / exact.norm())


def _transform_error(hypernetwork: AttentionHypernetwork, dtype: torch.dtype) -> float:
    """Worst relative error over all networks, on contexts of unit variance."""
    generator = torch.Generator().manual_seed(0)
    exact = copy.deepcopy(hypernetwork).to("cpu", torch.float64)
    worst = 0.0
    for (key, pair), (_, exact_pair) in zip(hypernetwork.pairs(), exact.pairs(), strict=True):
        context = torch.randn(1, 77, pair.width, generator=generator).to(dtype)
        site = key if isinstance(key, str) else None
        device = next(pair.parameters()).device
        made = hypernetwork.transform(context.to(device), site=site)
        wide = context.double()
        wanted = [wide + network(wide) for network in (exact_pair.key, exact_pair.value)]
        worst = max([worst, *(relative_error(m.cpu(), w) for m, w in zip(made, wanted, strict=True))])
    return worst


def _one_step(model: LatentDiffusion) -> Callable[[], Tensor]:
    """A call of the denoiser with fixed inputs, as a step with guidance makes it."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, *model.latent_shape, generator=generator).repeat(2, 1, 1, 1)
    conditions = any_conditions(model, 2)
    if model.conditioning == "text":
        conditions |= model.conditions({"captions": ["", PROMPTS[0]]})
    latents = latents.to(model.device, model.dtype)
    step = torch.full((2,), 500, device=model.device)
    return lambda: model.diffusion(latents, step, **conditions)


def _plainly(
    model: LatentDiffusion, hypernetwork: AttentionHypernetwork, step: Callable[[], Tensor], attached: Any
) -> Tensor:
    """The same step with to_k and to_v wrapped in the plainest way instead of hooked."""

    class Wrapped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module, network: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.network = inner, network

        def forward(self, context: Tensor) -> Tensor:
            changed = context + self.network(context)
            return self.inner(changed.to(context.dtype))  # type: ignore[no-any-return]

    attached.disable()
    sites = [
        (attention, pair)
        for site, attention in find_attentions(model.unet)
        if (pair := hypernetwork.network_for(site.context_width, site)) is not None
    ]
    own = [(a.to_k, a.to_v) for a, _ in sites]
    try:
        for attention, pair in sites:
            attention.to_k = Wrapped(attention.to_k, pair.key)  # type: ignore[arg-type]
            attention.to_v = Wrapped(attention.to_v, pair.value)  # type: ignore[arg-type]
        return step()
    finally:
        for (attention, _), (to_k, to_v) in zip(sites, own, strict=True):
            attention.to_k, attention.to_v = to_k, to_v
        attached.enable()


def _ratio(model: LatentDiffusion, hypernetwork: AttentionHypernetwork, step: Callable[[], Tensor]) -> float:
    bare = _seconds(step, model.device)
    with attach(model, hypernetwork):
        return _seconds(step, model.device) / bare


def _seconds(step: Callable[[], Tensor], device: torch.device) -> float:
    begin = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _pictures(
    model: LatentDiffusion,
    columns: Sequence[tuple[str, AttentionHypernetwork | None]],
    prompts: Sequence[str],
    steps: int,
    seed: int,
) -> tuple[Image.Image, list[Finding]]:
    prompts, told = _subjects(model, prompts)

    def draw(hypernetwork: AttentionHypernetwork | None) -> Tensor:
        seeds = [seed + i for i in range(len(prompts))]
        if hypernetwork is None:
            return model.sample(**told, seeds=seeds, steps=steps)
        with attach(model, hypernetwork) as attached:
            if not isinstance(model, PipelineDiffusion):  # which calls its transformer as it likes
                attached.rows_per_picture = 1 if model.conditioning == "none" else 2
            return model.sample(**told, seeds=seeds, steps=steps)

    begin = time.perf_counter()
    drawn = [draw(hypernetwork) for _, hypernetwork in columns]
    seconds = (time.perf_counter() - begin) / len(columns) / len(prompts)
    again = torch.equal(draw(None), drawn[0])
    grid = labelled_grid(
        list(zip(*(to_pictures(images) for images in drawn), strict=True)),
        rows=list(prompts),
        columns=[name for name, _ in columns],
    )
    return grid, [
        Finding(
            "pictures", f"{steps} steps, seed {seed}: {seconds:.1f} s each; see the PNG beside this page"
        ),
        # Kernels on a GPU may add in another order; a CPU must not.
        Finding(
            "the same seed twice",
            "bit-equal" if again else "differs",
            sound=again or model.device.type != "cpu",
        ),
    ]


def _subjects(model: LatentDiffusion, prompts: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """What the pictures are of, and how `LatentDiffusion.sample` is told: for models without prompts as many classes,
    grey pictures to be told of, or seeds.
    """
    count = len(prompts)
    if model.conditioning == "text":
        return list(prompts), {"captions": list(prompts)}
    if model.conditioning == "class":
        labels = [number % model.null_label for number in range(count)]
        names = model.class_names or [f"class {number}" for number in range(model.null_label)]
        return [names[label] for label in labels], {"class_labels": torch.tensor(labels)}
    if model.conditioning == "image":
        return ["grey"] * count, {"condition_images": any_conditions(model, count)["concat"].cpu()}
    return [f"picture {number + 1}" for number in range(count)], {"count": count}


def _cell(text: str) -> str:
    return text.replace("\n", "; ").replace("|", "\\|")
