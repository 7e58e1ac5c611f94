"""`hyperbrush evaluate`: what a model, with and without a hypernetwork, makes of held-out pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import unknown_name
from hyperbrush.hypernetworks import attach
from hyperbrush.hypernetworks.files.adapters import load
from hyperbrush.ldm.data import ImageFolder, cache_latents
from hyperbrush.ldm.data.cache import LatentCache
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.autoencoder import reconstruct
from hyperbrush.ldm.models.device import place, placement
from hyperbrush.ldm.modules.losses import psnr
from hyperbrush.training.data.conditioned import conditioned
from hyperbrush.training.ldm.objectives import make_batch, validation_losses


@torch.no_grad()
def mean_psnr(model: LatentDiffusion, data: ImageFolder, limit: int) -> float:
    """Mean of per-picture PSNR in dB over [0, 1] RGB, decoding the posterior's mean."""
    count, found = min(limit, len(data)), []
    for start in range(0, count, 64):
        images = make_batch(data, [(0, i) for i in range(start, min(count, start + 64))])["images"].to(
            model.device
        )
        made = reconstruct(model.first_stage, images)["reconstruction"]
        found.append(psnr((made / 2 + 0.5).clamp(0, 1), images / 2 + 0.5))
    return float(torch.cat(found).mean())


def evaluate_folder(
    folder: str | Path,
    *,
    model: str = "emoji",
    hypernetwork: Path | None = None,
    limit: int = 256,
    classes: str = "folders",
    condition_folder: str | Path | None = None,
    device: str = "auto",
) -> Iterator[str]:
    """Lines of a report: PSNR of the first stage, denoising loss without and with a hypernetwork.

    classes, condition_folder: of models that are told classes or pictures, see `training.conditioned.conditioned`.
    hypernetwork: a file of either kind: attention hypernetwork or generated weights.

    Raises:
        UserError: see `ImageFolder`, `LatentDiffusion.from_pretrained`, `attach`.
    """
    if classes not in ("folders", "captions"):
        raise unknown_name("source of classes", classes, ("folders", "captions"))
    network = load(hypernetwork) if hypernetwork else None
    opened = place(LatentDiffusion.from_pretrained(model), placement(device, "fp32"))
    data = ImageFolder(folder, size=opened.image_size).without_chance()
    count = min(limit, len(data))
    yield f"first stage: PSNR {mean_psnr(opened, data, limit):.2f} dB (mean over {count} pictures)"
    import tempfile

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        torch.no_grad(),
        LatentCache(Path(scratch), "evaluate") as cache,
    ):
        latents: Any = cache_latents(data, opened.moments, cache)
    latents = conditioned(opened, latents, data, classes=classes, condition_folder=condition_folder)
    without = validation_losses(opened, latents, limit=limit)
    yield f"denoising loss without a hypernetwork: {_spread(without)} ({count} pictures x {without.shape[1]} timesteps)"
    if network is not None:
        with attach(opened.unet, [(network, 1.0)]):
            with_it = validation_losses(opened, latents, limit=limit)
        yield f"denoising loss with {network.name}: {_spread(with_it)}, {float(with_it.mean() / without.mean() - 1):+.1%}"


def _spread(losses: torch.Tensor) -> str:
    """Mean over all, and the standard error over pictures."""
    per_picture = losses.mean(1)
    if len(per_picture) == 1:
        return f"{per_picture.item():.4f}"
    return f"{per_picture.mean():.4f} ± {per_picture.std() / len(per_picture) ** 0.5:.4f}"
