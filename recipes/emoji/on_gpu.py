"""The diffusion step on a lent GPU, in minutes: one folder goes there, three files come back.

    python recipes/emoji/on_gpu.py pack WORK FOLDER                # here: latents, captions, first weights; 45 MiB
    python on_gpu.py train FOLDER OUT [--minutes 8] [--batch 1024]  # there: torch, diffusers, transformers alone
    python recipes/emoji/on_gpu.py unpack START OUT MODEL           # here: a model folder

The same pictures, shares, captions and objective as `ldm train` with diffusion.yaml (v-prediction, stratified timesteps
moved towards noise, captions dropped one time in ten, AdamW, an average of the weights), with everything in the GPU's
memory, drawn there; not equal to it to the bit.  Latents travel as int8 (steps of 1/32: an error of 0.009 beside a
standard deviation of 1), the first weights as int8 by rows; names that few sets show (`rare`) stay here.  The rate rises
over 100 steps and falls from a third of the time on; what OUT holds is written anew every two minutes.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STEP = 1 / 32  # of a latent
SHARDS = 3
FIRST_CAPTION = 0.85  # diffusion.yaml's
DROPPED = 0.1


def pack(work: Path, folder: Path) -> None:
    """Latents and captions of the training folders, and the weights to begin with, into one folder."""
    import yaml

    from hyperbrush.ldm.data import ImageFolder
    from hyperbrush.ldm.models import LatentDiffusion

    model = LatentDiffusion.from_pretrained(work / "start")
    given = yaml.safe_load((work / "diffusion.yaml").read_text(encoding="utf-8"))["data"]["folders"]
    numbers: dict[Path, int] = {}  # pictures, by their files behind all links
    rows, latents, weights, texts, chances, first = [], [], [], [], [], [0]
    for one in given:
        path = Path(one["path"])
        if path.name == "rare":
            continue
        lines = (path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        for row in map(json.loads, lines):
            file = path.parent / "train" / row["file_name"]  # everyday has links to it
            if file not in numbers:
                numbers[file] = len(numbers)
                rows.append(file)
                weights.append(0.0)
                ends = one.get("append") or {"": 1.0}
                ways = [(row["text"][0], 1.0)]
                if others := row["text"][1:]:
                    ways = [(row["text"][0], FIRST_CAPTION)]
                    ways += [(text, (1 - FIRST_CAPTION) / len(others)) for text in others]
                for (text, chance), (end, weight) in product(ways, ends.items()):
                    said = end.replace("[filewords]", text) if "[filewords]" in end else text + end
                    texts.append(said)
                    chances.append(chance * weight / sum(ends.values()))
                first.append(len(texts))
            weights[numbers[file]] += one["share"] / len(lines)
    for path in dict.fromkeys(file.parent for file in rows):
        data = ImageFolder(path, size=64)
        at = {Path(data.paths[i]).name: i for i in range(len(data))}
        files = [file for file in rows if file.parent == path]
        for start in range(0, len(files), 64):
            images = torch.stack([data.example(at[f.name], 0)["image"] for f in files[start : start + 64]])
            latents.append((model.encode(images) / STEP).round().clamp(-127, 127).to(torch.int8))
    ids = model.tokenizer(
        texts, padding="max_length", max_length=model.tokenizer.model_max_length, truncation=True
    )
    known = torch.tensor(ids.input_ids, dtype=torch.int16)
    longest = int((known != known[:, -1:]).any(0).nonzero().max()) + 2  # the rest is padding
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "latents": torch.cat(latents),
        "weights": torch.tensor(weights),
        "first": torch.tensor(first),
        "ids": known[:, :longest].contiguous(),
        "chances": torch.tensor(chances),
    }
    save_file(tables, folder / "data.safetensors")
    parts = {"unet": model.unet, "text_encoder": model.text_encoder}
    state = {
        f"{part}.{name}": value for part, net in parts.items() for name, value in net.state_dict().items()
    }
    save_file(_narrow(state), folder / "start.safetensors")
    about = {part: json.loads((work / "start" / part / "config.json").read_text()) for part in parts}
    about["scheduler"] = json.loads((work / "start/scheduler/scheduler_config.json").read_text())
    about["empty"] = model.tokenizer(
        "", padding="max_length", max_length=model.tokenizer.model_max_length
    ).input_ids
    (folder / "about.json").write_text(json.dumps(about))
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    print(f"{len(rows)} pictures, {len(texts)} captions, {size:.1f} MiB")


def _narrow(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels as int8 with a scale a row; the rest in fp16."""
    found = {}
    for name, value in state.items():
        if value.dim() < 2 or not value.is_floating_point():
            found[name] = value.half() if value.is_floating_point() else value
            continue
        scale = value.flatten(1).abs().amax(1).clamp(min=1e-8) / 127
        rows = scale.view(-1, *[1] * (value.dim() - 1))
        found[name], found[f"{name}.scale"] = (value / rows).round().to(torch.int8), scale
    return found


def _wide(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `_narrow` made, in fp32 again."""
    found = {}
    for name, value in state.items():
        if name.endswith(".scale"):
            continue
        scale = state.get(f"{name}.scale")
        wide = value.float() if value.is_floating_point() or scale is not None else value
        found[name] = wide if scale is None else wide * scale.view(-1, *[1] * (wide.dim() - 1))
    return found


def _networks(folder: Path) -> tuple[dict[str, Any], torch.nn.ModuleDict]:
    """The pack's configuration, and its UNet and text encoder with their first weights."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    about = json.loads((folder / "about.json").read_text())
    unet = UNet2DConditionModel.from_config(about["unet"])
    text = CLIPTextModel(CLIPTextConfig(**about["text_encoder"]))
    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": text})
    left = both.load_state_dict(_wide(load_file(folder / "start.safetensors")), strict=False)
    strange = [name for name in [*left.missing_keys, *left.unexpected_keys] if "position_ids" not in name]
    if strange:
        raise SystemExit(f"the first weights do not fit: {strange[:5]}")
    return about, both


def train(
    folder: Path, out: Path, minutes: float, batch: int, rate: float, shift: float, device: str
) -> None:
    """Train for so many minutes; OUT gets the averaged weights in SHARDS files, and log.jsonl."""
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    about, both = _networks(folder)
    both.to(device).train()
    unet, text = both["unet"].to(memory_format=torch.channels_last), both["text_encoder"]
    table = {name: value.to(device) for name, value in load_file(folder / "data.safetensors").items()}
    sums = torch.cat([table["chances"].new_zeros(1), table["chances"].double().cumsum(0)])
    empty = torch.tensor(about["empty"], device=device)
    kept = DDPMScheduler.from_config(about["scheduler"]).alphas_cumprod.to(device)
    weights = [value for value in both.parameters() if value.requires_grad]
    average = [value.detach().clone() for value in weights]
    optimizer = torch.optim.AdamW(weights, rate, weight_decay=0.01, fused=True)
    out.mkdir(parents=True, exist_ok=True)
    begun = written = time.monotonic()
    step, log = 0, (out / "log.jsonl").open("w")
    while (now := time.monotonic()) < begun + 60 * minutes:
        share = (now - begun) / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100, 1.5 * (1 - share))
        chosen = torch.multinomial(table["weights"], batch, replacement=True)
        low, high = sums[table["first"][chosen]], sums[table["first"][chosen + 1]]
        said = torch.searchsorted(sums, low + torch.rand_like(low) * (high - low), right=True) - 1
        ids = empty.repeat(batch, 1)
        ids[:, : table["ids"].shape[1]] = table["ids"][said].long()
        ids[torch.rand(batch, device=device) < DROPPED] = empty
        clean = table["latents"][chosen].float() * STEP
        noise = torch.randn_like(clean)
        drawn = (torch.randperm(batch, device=device) + torch.rand(batch, device=device)) / batch
        drawn = shift * drawn / (1 + (shift - 1) * drawn)
        steps = (drawn * len(kept)).long().clamp(max=len(kept) - 1)
        signal, noisy = (root.sqrt().view(-1, 1, 1, 1) for root in (kept[steps], 1 - kept[steps]))
        seen = (signal * clean + noisy * noise).to(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            found = unet(seen, steps, text(ids).last_hidden_state).sample
        loss = torch.nn.functional.mse_loss(found.float(), signal * noise - noisy * clean)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        torch._foreach_lerp_(average, weights, 1 - min(0.999, step / (step + 10)))
        if step % 50 == 0 or step < 3:
            told = {"step": step, "pictures": step * batch, "loss": loss.item()}
            told |= {"seconds": round(time.monotonic() - begun, 1), "rate": optimizer.param_groups[0]["lr"]}
            print(json.dumps(told), file=log, flush=True)
            print(told, flush=True)
        if time.monotonic() - written > 120:
            written = time.monotonic()
            _write(both, weights, average, out)
    _write(both, weights, average, out)
    seconds = time.monotonic() - begun
    print(f"{step} steps of {batch} in {seconds:.0f} s: {step * batch / seconds:.0f} pictures/s")


def _write(both: torch.nn.Module, weights: list[Tensor], average: list[Tensor], out: Path) -> None:
    """The averaged weights in fp16, in files of about equal size."""
    own = {id(value): mean for value, mean in zip(weights, average, strict=True)}
    named = [(name, own[id(value)].half().cpu().contiguous()) for name, value in both.named_parameters()]
    size = sum(value.numel() for _, value in named) / SHARDS
    shards: list[dict[str, Tensor]] = [{} for _ in range(SHARDS)]
    seen = 0
    for name, value in named:
        shards[min(SHARDS - 1, int(seen // size))][name] = value
        seen += value.numel()
    for number, shard in enumerate(shards):
        save_file(shard, out / f"weights-{number}.safetensors")


def unpack(start: Path, out: Path, target: Path) -> None:
    """A model folder: the model in `start` with the weights that came back in `out`."""
    from hyperbrush.ldm.models import LatentDiffusion

    model = LatentDiffusion.from_pretrained(start)
    state: dict[str, Tensor] = {}
    for number in range(SHARDS):
        state |= load_file(out / f"weights-{number}.safetensors")
    for part in ("unet", "text_encoder"):
        own = {name.removeprefix(f"{part}."): v.float() for name, v in state.items() if name.startswith(part)}
        left = getattr(model, part).load_state_dict(own, strict=False)
        if left.unexpected_keys or [name for name in left.missing_keys if "position_ids" not in name]:
            raise SystemExit(f"{out} does not fit the {part} of {start}: {left}")
    model.save_pretrained(target)
    print(target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, places in (
        ("pack", ("work", "folder")),
        ("train", ("folder", "out")),
        ("unpack", ("start", "out", "model")),
    ):
        one = verbs.add_parser(verb)
        for place in places:
            one.add_argument(place, type=Path)
        if verb == "train":
            one.add_argument("--minutes", type=float, default=8.0)
            one.add_argument("--batch", type=int, default=1024)
            one.add_argument("--rate", type=float, default=1e-3)
            one.add_argument("--shift", type=float, default=2.5)
            one.add_argument("--device", default="cuda")
    given = parser.parse_args()
    if given.verb == "pack":
        pack(given.work, given.folder)
    elif given.verb == "unpack":
        unpack(given.start, given.out, given.model)
    else:
        train(given.folder, given.out, given.minutes, given.batch, given.rate, given.shift, given.device)


if __name__ == "__main__":
    main()
