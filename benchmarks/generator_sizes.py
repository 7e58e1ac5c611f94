"""What generating takes at Stable Diffusion's sizes: parameters, seconds, memory, size of the adapter.

    python benchmarks/generator_sizes.py [--rounds 5] [--threads 2] [--out benchmarks/results]

UNets of 1.5's and XL's shapes with random weights; a `Hypernetwork` with its default settings (768, 1024, rank 4) for all
to_q, to_k, to_v and to_out; one condition of 77 tokens.  Each in a process of its own, for its peak of memory.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

from hyperbrush.files import write_json

CONFIGS = {"SD 1.5": "sd1", "SDXL": "sdxl"}


def measure(config: Path, rounds: int) -> dict[str, Any]:
    """Figures of one shape, in this process."""
    import torch
    from diffusers import UNet2DConditionModel

    import hyperbrush as hb

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(config))
    torch.manual_seed(0)
    net = hb.Hypernetwork(target=hb.TargetNetwork(unet))
    condition = torch.randn(1, 77, 768)
    seconds = []
    with torch.no_grad():
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            weights = net.generate_weights(condition)
            seconds.append(time.perf_counter() - begin)
    with tempfile.TemporaryDirectory() as folder:
        file = weights[0].save(Path(folder) / "w.safetensors", dtype=torch.float16)
        size = file.stat().st_size
    parts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in net.named_children()}
    return {
        "layers": len(net.layers),
        "million_parameters": parts,
        "seconds": statistics.median(seconds[1:]),
        "least": min(seconds[1:]),
        "most": max(seconds[1:]),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "adapter_numbers": weights.size,
        "file_megabytes_fp16": size / 1e6,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table of a result."""
    lines = [
        "| UNet | layers | encoder, trunk, decoder (M) | seconds (least–most) | peak memory | adapter, fp16 |",
        "|---|---|---|---|---|---|",
    ]
    for name, f in result["shapes"].items():
        parts = ", ".join(f"{value:.1f}" for value in f["million_parameters"].values())
        lines.append(
            f"| {name} | {f['layers']} | {parts} | {f['seconds']:.2f} ({f['least']:.2f}–{f['most']:.2f}) | "
            f"{f['peak_megabytes']:.0f} MB | {f['file_megabytes_fp16']:.1f} MB |"
        )
    return "\n".join([*lines, "", f"{result['machine']}, torch {result['torch']}."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--shape", choices=list(CONFIGS.values()), help=argparse.SUPPRESS)
    given = parser.parse_args()

    import torch

    torch.set_num_threads(given.threads)
    if given.shape:
        folder = resources.files("hyperbrush") / f"assets/configs/{given.shape}/unet"
        print(json.dumps(measure(Path(str(folder)), given.rounds)))
        return
    shapes = {}
    for name, shape in CONFIGS.items():
        command = [sys.executable, __file__, "--shape", shape, "--rounds", str(given.rounds)]
        command += ["--threads", str(given.threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        shapes[name] = json.loads(done.stdout.splitlines()[-1])
    result = {
        "shapes": shapes,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {given.threads} threads",
        "torch": torch.__version__,
    }
    write_json(given.out / "generator_sizes.json", result)
    print(markdown(result))


if __name__ == "__main__":
    main()
