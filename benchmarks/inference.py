"""What hypernetworks cost at inference: seconds of a UNet step, each as a ratio to the bare UNet.

    python benchmarks/inference.py [--pairs 6] [--minutes 9] [--threads 2] [--out benchmarks/results]

SD1.5's shapes with random weights, bf16, batch 2, 64×64 latents, 77 tokens; networks 1,2,1 relu for all four
widths.  Every way has a module tree of its own over the same weights, so nothing is attached or warmed up
between timed steps.  Pairs (bare, way) come in random order, also within a pair; a ratio is taken within its
pair; medians with 95 % bootstrap intervals, of wall time and of CPU time (which other programs disturb less).
Timesteps fall as in a sampling, with one prompt; its first step, which pays cross-attention's networks, is
timed by itself.  The floor comes from FLOPs: bare UNet with and without self-attention's networks.
On a GPU each way is timed eagerly and compiled with CUDA graphs.  Writes inference.json, prints markdown.
"""

import argparse
import copy
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import hyperbrush as hb
from hyperbrush.files import write_json

STEPS = 25  # of the sampling that the mean is for
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Way:
    """One way to run the UNet: ``call(timestep)`` makes a step.

    aim: the ratio to reach at most; None: none was set.
    first: time the first step of a sampling again and again, instead of those after it.
    """

    name: str
    unet: Any
    inputs: tuple[Tensor, Tensor]
    aim: float | None = None
    first: bool = False
    call: Any = None
    _timestep: int = 1000
    ratios: dict[str, list[float]] = field(default_factory=lambda: {clock: [] for clock in CLOCKS})

    @torch.no_grad()
    def step(self) -> Tensor:
        """The next step: (batch, channels, height, width)."""
        self._timestep = 999 if self.first else self._timestep - 1 or 999
        latents, context = self.inputs
        timestep = torch.tensor(self._timestep, device=latents.device)
        call = self.unet if self.call is None else self.call
        out: Tensor = call(latents, timestep, encoder_hidden_states=context).sample
        return out


def build_unet(config: str | Path, dtype: torch.dtype, device: str) -> Any:
    """A UNet with random weights: no fp32 copy is ever made, so that peak memory means something."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(config))
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(dtype)
    unet.to_empty(device=device)
    for module in unet.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5)
            else:
                norm = isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm)
                parameter.data.fill_(float(norm and name == "weight"))
    return unet.eval().requires_grad_(False)


def tree_over_same_weights(module: Any) -> Any:
    """A copy of the modules that shares every parameter and buffer."""
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def attach_plainly(
    unet: Any,
    hypernetwork: hb.AttentionHypernetwork,
    strength: float = 1.0,
    kinds: tuple[str, ...] = ("attn1", "attn2"),
) -> None:
    """As the webui does it: c + strength·MLP(c) anew for keys and values of every attention, every step."""
    pairs = {key: [_sequential(n) for n in (pair.key, pair.value)] for key, pair in hypernetwork.pairs()}

    def transform(network: torch.nn.Module) -> Any:
        return lambda module, args: (args[0] + strength * network(args[0]), *args[1:])

    for name, module in unet.named_modules():
        if name.endswith(kinds):
            key, value = pairs[module.to_k.in_features]
            module.to_k.register_forward_pre_hook(transform(key))
            module.to_v.register_forward_pre_hook(transform(value))


def _sequential(network: Any) -> torch.nn.Sequential:
    """Linear, ReLU, Linear with the weights of one of our networks."""
    made: list[torch.nn.Module] = []
    for layer in network.layers:
        linear = torch.nn.Linear(layer.linear.in_features, layer.linear.out_features, device="meta")
        linear.weight, linear.bias = layer.linear.weight, layer.linear.bias
        made += [linear] if layer.activation is None else [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*made)


def flops(unet: Any, inputs: tuple[Tensor, Tensor]) -> int:
    """Floating-point operations of one step, counted without computing anything."""
    latents, context = (t.to("meta") for t in inputs)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(latents, torch.zeros((), device="meta"), encoder_hidden_states=context)
    return int(counter.get_total_flops())


def floor_of_flops(unet: Any, inputs: tuple[Tensor, Tensor]) -> float:
    """Operations with self-attention's networks as a ratio to the bare UNet's: those of cross-attention
    need computing once per prompt, those of self-attention at every step.
    """
    meta = copy.deepcopy(unet).to("meta")
    bare = flops(meta, inputs)
    with torch.device("meta"):
        hypernetwork = hb.AttentionHypernetwork.for_unet(meta, attn=["attn1"])
    attach_plainly(meta, hypernetwork.to(inputs[0].dtype), kinds=("attn1",))
    return flops(meta, inputs) / bare


def make_ways(
    unet: Any, inputs: tuple[Tensor, Tensor], floor: float
) -> tuple[list[Way], dict[str, Any], list[Any]]:
    """All ways, what fusing took and gave, and what must be kept alive."""
    dtype, device = inputs[0].dtype, inputs[0].device

    def networks(precision: torch.dtype = dtype, **settings: Any) -> hb.AttentionHypernetwork:
        torch.manual_seed(1)
        made = hb.AttentionHypernetwork.for_unet(unet, weight_init="KaimingNormal", **settings)
        return made.to(precision).to(device).requires_grad_(False)

    facts: dict[str, Any] = {}
    alive: list[Any] = []
    ways: list[Way] = []

    def ours(
        name: str, hypernetwork: Any, strength: Any = 0.7, aim: float | None = None, first: bool = False
    ) -> None:
        tree = tree_over_same_weights(unet)
        alive.append(hb.attach(tree, (hypernetwork, strength)))
        ways.append(Way(name, tree, inputs, aim, first))

    half = networks()
    plain = tree_over_same_weights(unet)
    attach_plainly(plain, half, 0.7)
    ways.append(Way("plain, as the webui does it", plain, inputs))
    ours("ours, all widths", half, aim=floor + 0.02)
    ours("ours, all widths, first step", half, first=True)
    ours("ours, all widths, fp32 networks", networks(torch.float32))
    ours("ours, another strength every step", half, hb.Ramp(1.0, 0.2), aim=floor + 0.02)
    ours("ours, cross-attention only", networks(attn=["attn2"]), aim=1.0)
    for name, activation in (("exactly", "linear"), ("approximately", "relu")):
        tree = tree_over_same_weights(unet)
        attached = hb.attach(tree, (networks(activation=activation), 0.7))
        chosen = None
        if activation != "linear":
            sites = [(path, m) for path, m in tree.named_modules() if path.endswith(("attn1", "attn2"))]
            chosen = {path: torch.randn(256, m.to_k.in_features, device=device) for path, m in sites}
        begin = time.perf_counter()
        attached.fuse(approximate=chosen is not None, contexts=chosen)
        facts[f"fuse {name}, seconds"] = time.perf_counter() - begin
        alive.append(attached)
        ways.append(Way(f"ours, fused {name}", tree, inputs, aim=1.0))
    return ways, facts, alive


def measure(
    bare: Way, ways: list[Way], pairs: int, repeat: int, minutes: float, seed: int = 0
) -> dict[str, list[float]]:
    """Fill the ways' ratios, round by round; returns the bare UNet's seconds per step, by clock.

    minutes: no round begins after that time, except the first.
    """
    chance = random.Random(seed)
    seconds: dict[str, list[float]] = {clock: [] for clock in CLOCKS}
    begin = time.perf_counter()
    for done in range(pairs):
        if done and time.perf_counter() - begin > 60 * minutes:
            break
        for way in chance.sample(ways, len(ways)):
            took = {one.name: _time(one, repeat) for one in chance.sample([bare, way], 2)}
            for clock in CLOCKS:
                seconds[clock].append(took[bare.name][clock])
                way.ratios[clock].append(took[way.name][clock] / took[bare.name][clock])
    return seconds


def _time(way: Way, repeat: int) -> dict[str, float]:
    _wait()
    begin = {clock: read() for clock, read in CLOCKS.items()}
    for _ in range(repeat):
        way.step()
    _wait()
    return {clock: (read() - begin[clock]) / repeat for clock, read in CLOCKS.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interval(values: list[float], draws: int = 2000) -> dict[str, float]:
    """The median with its 95 % bootstrap interval."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    low, high = medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]
    return {"median": statistics.median(values), "low": low, "high": high}


def peak_of_step(way: Way) -> float | None:
    """Most memory in use during one step above what was in use before, in MB; None: unknown here."""
    if way.inputs[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way.step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():  # getrusage's peak is the whole process's and cannot be reset
        return None
    clear.write_text("5")
    before = _kilobytes(status, "VmRSS")
    way.step()
    return (_kilobytes(status, "VmHWM") - before) / 1e3


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def attach_and_detach(unet: Any, dtype: torch.dtype, times: int = 20) -> dict[str, dict[str, float]]:
    """Milliseconds to attach to, and to detach from, a whole UNet; fuse and unfuse for affine networks."""
    tree = tree_over_same_weights(unet)
    device = next(unet.parameters()).device
    hypernetwork = hb.AttentionHypernetwork.for_unet(tree, activation="linear", weight_init="Normal")
    hypernetwork.to(dtype).to(device)
    found: dict[str, list[float]] = {"attach": [], "detach": [], "fuse": [], "unfuse": []}

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        _wait()
        found[what].append((time.perf_counter() - begin) * 1000)

    for i in range(times):
        with timed("attach"):
            attached = hb.attach(tree, hypernetwork)
        if i < 3:
            with timed("fuse"):
                attached.fuse()
            with timed("unfuse"):
                attached.unfuse()
        with timed("detach"):
            attached.detach()
    return {what: interval(ms) for what, ms in found.items()}


def agreement(ways: Mapping[str, Way]) -> float:
    """‖ours − plain‖ / ‖plain‖ of the UNet's output at one timestep."""
    outputs = []
    for name in ("plain, as the webui does it", "ours, all widths"):
        ways[name]._timestep = 1000
        outputs.append(ways[name].step().float())
    return float((outputs[1] - outputs[0]).norm() / outputs[0].norm())


def run(
    config: str | Path,
    *,
    pairs: int,
    minutes: float,
    latents: int,
    dtype: torch.dtype,
    device: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that the table says, by name."""
    import diffusers

    torch.manual_seed(seed)
    unet = build_unet(config, dtype, device)
    width = unet.config.cross_attention_dim
    inputs = (
        torch.randn(2, unet.config.in_channels, latents, latents, device=device).to(dtype),
        torch.randn(2, 77, width, device=device).to(dtype),
    )
    floor = floor_of_flops(unet, inputs)
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}",
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "settings": {"dtype": str(dtype), "latents": latents, "batch": 2, "pairs": pairs},
        "floor_of_flops": floor,
        "milliseconds": attach_and_detach(unet, dtype),
    }
    modes = ["eager", "compiled"] if device == "cuda" else ["eager"]
    for mode in modes:
        result[mode] = _run_mode(unet, inputs, floor, pairs, minutes, mode)
    return result


def _run_mode(
    unet: Any, inputs: tuple[Tensor, Tensor], floor: float, pairs: int, minutes: float, mode: str
) -> dict[str, Any]:
    ways, facts, alive = make_ways(unet, inputs, floor)
    bare = Way("bare UNet", tree_over_same_weights(unet), inputs)
    if mode == "compiled":
        # All trees run the same code; apart, none takes another's graph or counts against its limit.
        for way in (bare, *ways):
            way.call = torch.compile(way.unet, mode="reduce-overhead", isolate_recompiles=True)
    for way in (bare, *ways):  # compiles, fills caches; the first step of ours computes cross-attention
        for _ in range(3 if mode == "compiled" else 1):
            way.step()
    by_name = {way.name: way for way in ways}
    seconds = measure(bare, ways, pairs, repeat=10 if inputs[0].is_cuda else 1, minutes=minutes)
    result: dict[str, Any] = {
        "pairs": len(ways[0].ratios["wall"]),
        "bare_seconds": {clock: interval(values) for clock, values in seconds.items()},
        "ways": {
            way.name: {"aim": way.aim, **{clock: interval(way.ratios[clock]) for clock in CLOCKS}}
            for way in ways
        },
        "difference_ours_to_plain": agreement(by_name),
        **facts,
    }
    steady, first = by_name["ours, all widths"], by_name["ours, all widths, first step"]
    result["ways"][f"ours, all widths, mean of {STEPS} steps"] = {
        "aim": floor + 0.02,
        **{clock: _mean_of_steps(first.ratios[clock], steady.ratios[clock]) for clock in CLOCKS},
    }
    peaks = {way.name: peak_of_step(way) for way in (bare, *ways)}
    result["peak_megabytes_of_step"] = peaks
    result["weights_megabytes"] = {
        "UNet": _megabytes(unet),
        "networks": _megabytes(alive[0].hypernetworks[0]),
    }
    for attached in alive:
        attached.detach()
    return result


def _mean_of_steps(first: list[float], steady: list[float]) -> dict[str, float]:
    """One first step and the others, interval by interval: (1·first + 24·steady) / 25."""
    a, b = interval(first), interval(steady)
    return {key: (a[key] + (STEPS - 1) * b[key]) / STEPS for key in a}


def _megabytes(module: torch.nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in module.parameters()) / 1e6


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a result."""
    lines = []
    for mode in ("eager", "compiled"):
        if mode not in result:
            continue
        found = result[mode]
        lines += [
            f"{result['device']}; {result['machine']}; torch {result['versions']['torch']}, diffusers "
            f"{result['versions']['diffusers']}; {mode}; bare UNet "
            f"{found['bare_seconds']['wall']['median']:.3f} s a step; {found['pairs']} pairs each",
            "",
            "| way | ratio to the bare UNet (95 %) | of CPU time | aim | peak memory of a step |",
            "|---|---|---|---|---|",
        ]
        peaks = found["peak_megabytes_of_step"]
        for name, way in found["ways"].items():
            ratio, cpu = (
                (f"{w['median']:.3f} ({w['low']:.3f}–{w['high']:.3f})") for w in (way["wall"], way["cpu"])
            )
            aim = "" if way["aim"] is None else f"≤ {way['aim']:.3f}"
            more = peaks.get(name), peaks["bare UNet"]
            peak = "" if None in more else f"{more[0] - more[1]:+.0f} MB"
            lines.append(f"| {name} | {ratio} | {cpu} | {aim} | {peak} |")
        lines += [
            f"| floor of all widths, from FLOPs | {result['floor_of_flops']:.3f} | | | "
            f"networks {found['weights_megabytes']['networks']:.0f} MB |",
            "",
        ]
    lines += ["| | milliseconds (95 %) | aim |", "|---|---|---|"]
    for what, ms in result["milliseconds"].items():
        aim = "< 50" if what in ("attach", "detach") else ""
        lines.append(f"| {what} | {ms['median']:.1f} ({ms['low']:.1f}–{ms['high']:.1f}) | {aim} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sd1 = resources.files("hyperbrush") / "assets/configs/sd1/unet"
    cuda = torch.cuda.is_available()
    parser.add_argument("--pairs", type=int, default=6, help="pairs (bare, way) for each way")
    parser.add_argument("--minutes", type=float, default=9, help="begin no more pairs after that time")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--config", type=Path, default=Path(str(sd1)), help="folder of a UNet's config.json")
    parser.add_argument("--latents", type=int, default=64, help="height and width of the latents")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    begin = time.perf_counter()
    result = run(
        given.config,
        pairs=given.pairs,
        minutes=given.minutes,
        latents=given.latents,
        dtype=getattr(torch, given.dtype),
        device=given.device,
    )
    result["seconds"] = round(time.perf_counter() - begin)
    write_json(given.out / "inference.json", result)
    print(markdown(result))


if __name__ == "__main__":
    main()
