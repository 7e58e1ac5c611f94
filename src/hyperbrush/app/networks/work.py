"""Hypernetworks written for other programs."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

from hyperbrush.app.jobs.context import JobContext
from hyperbrush.app.model.work import opened
from hyperbrush.app.networks.service import file_of
from hyperbrush.app.requests import ExportRequest, checked
from hyperbrush.files import atomic_path

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def export(context: JobContext) -> dict[str, Any]:
    """Job "export": {"network": name} with an `ExportRequest`; the file in export/ of the job's folder."""
    import torch

    from hyperbrush.hypernetworks.convert.convert import convert, convert_generated
    from hyperbrush.hypernetworks.files import load_attention
    from hyperbrush.hypernetworks.files.adapters import is_generated_file

    values = dict(context.arguments)
    path = file_of(context.workspace, str(values.pop("network")))
    request: ExportRequest = checked(ExportRequest, values)
    target = _target(context.folder / "export", path.stem, request.to)
    dtype = getattr(torch, DTYPES[request.precision]) if request.precision else None
    if is_generated_file(path):
        convert_generated(path, target, request.to, rank=request.rank, strength=request.strength, dtype=dtype)
        return {"file": _packed(target).name}
    model = None
    if request.to.startswith("lora-"):
        model = opened(context)
        if model.model.dtype != torch.float32:  # what is folded into a LoRA is measured in full precision
            model = opened(context, precision="fp32")

    def report_progress(site: str, done: int, of: int) -> None:
        context.tell(now=done == of, stage=site, step=done, steps=of)
        context.raise_if_requested()

    given = request.model_dump(include={"rank", "bias", "steps", "seed"}, exclude_none=True)
    written = convert(
        load_attention(path),
        target,
        request.to,
        model=None if model is None else model.model,
        legacy_zip=request.legacy_zip,
        dtype=dtype,
        prompts=request.prompts or None,
        strength=request.strength,
        on_progress=report_progress,
        **given,
    )
    report = written.report
    result = {} if report is None else {"report": str(report), "lost": report.lost}
    return {"file": _packed(target).name, **result}


def _target(folder: Path, stem: str, to: str) -> Path:
    """Where a format is written: one file or folder in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that died
    folder.mkdir(parents=True)
    if to in ("webui", "safetensors"):
        return folder / f"{stem}{'.pt' if to == 'webui' else '.safetensors'}"
    suffix = {"comfyui": ".pt", "lora-peft": ""}.get(to, ".safetensors")
    return folder / f"{stem.replace('.', '_') if not suffix else stem}-{to}{suffix}"


def _packed(target: Path) -> Path:
    """A file as it is; a folder as a .zip."""
    if not target.is_dir():
        return target
    archive = target.with_name(target.name + ".zip")
    with atomic_path(archive) as part, zipfile.ZipFile(part, "w") as pack:
        for file in sorted(target.rglob("*")):
            pack.write(file, file.relative_to(target.parent))
    shutil.rmtree(target)
    return archive
