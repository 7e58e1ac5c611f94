"""One run of the study: a method on a style, from the job to its line of figures."""

import copy
import hashlib
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.util import keyed_seed
from hyperbrush.picture_judge import PictureJudge
from hyperbrush.training.attention.config import HypernetworkConfig
from hyperbrush.training.loop.checkpoint import digest
from hyperbrush.training.loop.trainer import Trainer
from quality.data import STYLES, TRAIN, VALIDATION, StyleData, joined, known_names, prepare
from quality.measures import STRENGTHS, Measures, area, candidates
from quality.methods import method
from quality.objective import StyleObjective


@dataclass(frozen=True)
class Plan:
    """What all runs have in common.

    watch: steps after which the watched validation pictures are looked at; pictures: generated after
    the run, for the style and the content measure, with these sampling steps and this guidance.
    """

    steps: int = 100
    batch_size: int = 16
    watch: tuple[int, ...] = (5, 10, 20, 35, 50, 75, 100)
    watched: int = 48
    train: int = TRAIN
    validation: int = VALIDATION
    pictures: int = 48
    sampling_steps: int = 15
    guidance: float = 4.0


@dataclass(frozen=True)
class Job:
    """One run: phase is tune, main, sizes or shared; method "base" is the model alone."""

    phase: str
    style: str
    method: str
    rate: float
    seed: int
    budget: int

    def key(self, model: str, plan: Plan) -> str:
        """What makes a result this job's: the job, the plan and the model's weights."""
        text = json.dumps([asdict(self), asdict(plan), model], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Study:
    """The model, the styles and the measures, opened once for many runs.

    source: model; icons: folder of the rendered sets; work: for copies and caches; judge: file of the judge, the one
    that ships by default.
    """

    def __init__(
        self,
        source: str,
        icons: Path,
        work: Path,
        plan: Plan,
        styles: tuple[str, ...] = STYLES,
        judge: Path | None = None,
    ) -> None:
        self.opened = (source, icons, work, plan, styles, judge)
        self.model = LatentDiffusion.from_pretrained(source).requires_grad_(False).eval()
        self.plan, self.icons, self.work, self.styles = plan, icons, work, styles
        self.sha256 = digest(dict(self.model.state_dict()))
        self.model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._data: dict[str, StyleData] = {}
        self.judge = PictureJudge.load(judge)

    def data(self, style: str) -> StyleData:
        """One style, encoded."""
        if style not in self._data:
            plan, flip = self.plan, HypernetworkConfig().flip
            self._data[style] = prepare(
                self.model,
                self.icons,
                style,
                self.work,
                flip=flip,
                train=plan.train,
                validation=plan.validation,
            )
        return self._data[style]

    def measures(self, style: str) -> Measures:
        """What pictures of a style are judged by: names among 200 that the judge and the model know."""
        known = set(self.judge.names)
        own = [name for name in self.data(style).captions if name in known]
        others = [n for stem in known_names(self.icons) if (n := stem.replace("-", " ")) in known]
        return Measures(self.judge, style, candidates(own, others))

    def config(self, job: Job) -> HypernetworkConfig:
        """The run's settings: our trainer's defaults, the plan's length, the method's own."""
        plan = self.plan
        settings: dict[str, Any] = {
            "learning_rate": job.rate,
            "max_steps": plan.steps,
            "batch_size": plan.batch_size,
            "seed": job.seed,
            "validate_every": min(plan.watch),
            "preview_every": plan.steps,
            "checkpoint_every": plan.steps,
            "on_divergence": "stop",
        }
        return HypernetworkConfig(**(settings | dict(method(job.method).training)))

    def prepared(self, job: Job) -> tuple[LatentDiffusion, StyleObjective]:
        """A copy of the model with the method's adapter at work, and its objective.

        In the phase "shared" it learns from all other styles' pictures, and none of this one's: what it closes of this
        style's gap is no style.
        """
        model = copy.deepcopy(self.model)
        torch.manual_seed(keyed_seed("weights", job.seed))
        adapter = method(job.method).make(model, job.budget)
        adapter.train()
        plan, data = self.plan, self.data(job.style)
        if job.phase == "shared":
            data = joined(data, [self.data(style) for style in self.styles if style != job.style])
        return model, StyleObjective(model, adapter, data, self.config(job), plan.watched, plan.watch)

    def run(self, job: Job) -> dict[str, Any]:
        """Train, and measure the best weights on all validation pictures.

        Tuning runs are judged by the watched pictures alone, which is what they are for.
        """
        if job.method == "base":
            return self._base(job)
        begin = time.process_time()
        model, objective = self.prepared(job)
        first = objective.validation_loss(objective.held_out)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(objective, objective.config.trainer(self.plan.train), folder)
            trainer.train()
        found: dict[str, Any] = {
            "size": objective.adapter.size,
            "watched": {0: first, **dict(zip(self.plan.watch, objective.history, strict=False))},
            "best_watched": min(objective.history),
            "last_watched": objective.history[-1],
        }
        if job.phase != "tune":
            found["loss"] = objective.validation_loss(objective.data.validation)
        if job.phase == "main":
            found |= self._drawn(model, objective, job.style)
        return found | {"seconds": round(time.process_time() - begin, 1)}

    def _base(self, job: Job) -> dict[str, Any]:
        from quality.methods import Adapter

        objective = StyleObjective(
            self.model,
            Adapter(),
            self.data(job.style),
            HypernetworkConfig(),
            self.plan.watched,
            self.plan.watch,
        )
        return {
            "size": 0,
            "loss": objective.validation_loss(objective.data.validation),
            "best_watched": objective.validation_loss(objective.held_out),
            **self._drawn(self.model, objective, job.style),
        }

    def _drawn(self, model: LatentDiffusion, objective: StyleObjective, style: str) -> dict[str, Any]:
        """Figures of pictures drawn with the adapter at several strengths; those of strength 1 by themselves."""
        measures = self.measures(style)
        names = [n for n in self.data(style).captions if n in set(measures.among)][: self.plan.pictures]
        curve: dict[str, dict[str, float]] = {}
        for strength in STRENGTHS:
            if objective.adapter.set_strength(strength):
                curve[f"{strength:g}"] = measures.of(self._pictures(model, objective, names), names)
        objective.adapter.set_strength(1.0)
        return {
            **curve["1"],
            "curve": curve,
            "area": area([(f["style"], f["content"]) for f in curve.values()]),
        }

    @torch.no_grad()
    def _pictures(self, model: LatentDiffusion, objective: StyleObjective, names: list[str]) -> Tensor:
        made: Tensor = model.sample(
            embeddings=objective.text_states(names)["embeddings"],
            negative_embeddings=objective.text_states([""] * len(names))["embeddings"],
            seeds=list(range(len(names))),
            steps=self.plan.sampling_steps,
            guidance_scale=self.plan.guidance,
        )
        return made * 2 - 1

    def seconds_per_step(self, name: str, budget: int, steps: int = 8) -> float:
        """Wall-clock seconds of one training step, the median of some."""
        job = Job("time", self.styles[0], name, method(name).rates[0], 0, budget)
        _, objective = self.prepared(job)
        taken: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            config = objective.config.trainer(self.plan.train)
            flat = config.optimizer.model_copy(update={"schedule": "constant", "warmup_steps": 0})
            few = {"steps": steps + 2, "validate_every": 10**6, "keep_best": False, "optimizer": flat}
            config = config.model_copy(update=few)
            objective.watch = ()
            last = time.perf_counter()

            def note(_: Any) -> None:
                nonlocal last
                now = time.perf_counter()
                taken.append(now - last)
                last = now

            Trainer(objective, config, folder, on_progress=note).train()
        return sorted(taken[1:-1])[len(taken[1:-1]) // 2]  # the first warms up, the last writes
