"""Training an attention hypernetwork on a frozen model."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hyperbrush.errors import UserError
from hyperbrush.hypernetworks import AttentionHypernetwork
from hyperbrush.hypernetworks.files.optimizer import OptimizerState, check_fits
from hyperbrush.hypernetworks.generator import Hypernetwork, TargetNetwork, TunedWeights
from hyperbrush.ldm.data import BatchOrder, ImageFolder, captions_seen, over_folders
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.pipelines import as_model
from hyperbrush.ldm.modules.diffusion import Loss
from hyperbrush.ldm.util import load_config
from hyperbrush.training.attention.config import HypernetworkConfig, usual_rate
from hyperbrush.training.attention.objective import Compute, HypernetworkObjective
from hyperbrush.training.data.cached import cached_latents, cached_texts
from hyperbrush.training.data.conditioned import check_wanted, conditioned
from hyperbrush.training.data.pictures import LookAt, Pictures, hold_out, open_pictures
from hyperbrush.training.generator.config import GeneratorConfig
from hyperbrush.training.generator.objective import GeneratorObjective, generator_objective
from hyperbrush.training.loop.adapter_settings import AdapterSettings
from hyperbrush.training.loop.caller import ModuleAsFound
from hyperbrush.training.loop.config import TrainerConfig
from hyperbrush.training.loop.optimizers import resolve, restore_moments
from hyperbrush.training.loop.processes import check_precision, is_main, join, main_first, prepared
from hyperbrush.training.loop.progress import PrepareCallback
from hyperbrush.training.loop.run_folder import opened_run
from hyperbrush.training.loop.trainer import OptimizerFactory, Progress, Trainer

log = logging.getLogger(__name__)


class HypernetworkTrainer:
    """Trains a hypernetwork on pictures; the model is left as it was found, in every respect.

    Args:
        hypernetwork: what is trained: an attention hypernetwork on pictures of one style, generated weights
            (`TunedWeights`) on such, or a `Hypernetwork`, which generates weights, on many styles.
        config: settings of `HypernetworkConfig`, or of `GeneratorConfig` for the second kind, as a mapping; for that
            kind ``target_layers`` too, which must mean the layers that it generates weights for.
        run: folder of the run, runs/NAME by default.
        loss, compute: a loss or a whole objective of one's own, see `HypernetworkObjective` and `GeneratorObjective`.
        optimizer_factory: makes an optimizer of parameter groups, instead of the config's.
        learning_rate: from the steps made to the rate of the next, instead of the config's schedule, see `Trainer`.
        optimizer_state: to begin with, such as `read_optimizer` finds beside a file.
        on_progress, should_stop: see `Trainer`.
        on_prepare: called with (what, done, in all) while pictures and captions are encoded.
        look: what a picture is, where that is known already, as of `Preflight.look`.

    Raises:
        UserError: whatever is wrong with the settings.
    """

    def __init__(
        self,
        hypernetwork: AttentionHypernetwork | TunedWeights | Hypernetwork,
        config: Mapping[str, Any] | HypernetworkConfig | GeneratorConfig | None = None,
        *,
        run: str | Path | None = None,
        loss: Loss | None = None,
        compute: Compute | None = None,
        optimizer_factory: OptimizerFactory | None = None,
        learning_rate: Callable[[int], float] | None = None,
        optimizer_state: OptimizerState | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_prepare: PrepareCallback | None = None,
        look: LookAt | None = None,
    ) -> None:
        self.hypernetwork = hypernetwork
        self._target_layers: list[str] | None = None
        if isinstance(hypernetwork, Hypernetwork) and isinstance(config, Mapping):
            config = dict(config)
            self._target_layers = config.pop("target_layers", None)
            if self._target_layers is not None:
                hypernetwork.check_layers(self._target_layers)
        if optimizer_state is not None and not isinstance(hypernetwork, AttentionHypernetwork):
            raise UserError(
                f"an optimizer's state is beside files of attention hypernetworks alone; {hypernetwork.name!r} is a "
                f"{type(hypernetwork).__name__}: leave optimizer_state out"
            )
        self.config = _settings(hypernetwork, config)
        self.run = Path(run) if run is not None else Path("runs") / hypernetwork.name
        self.loss, self.compute = loss, compute
        self.optimizer_factory, self.optimizer_state = optimizer_factory, optimizer_state
        self.learning_rate = learning_rate
        self.on_progress, self.should_stop, self.on_prepare = on_progress, should_stop, on_prepare
        self.look = look
        self.optimizer: torch.optim.Optimizer | None = None  # after a training

    def train(
        self,
        model: Any,
        dataset: Any,
        validation: Any = None,
        *,
        resume: bool = False,
        at: int | None = None,
        held: bool = False,
        on_begin: Callable[[], None] | None = None,
    ) -> Path:
        """Train and return the file written.

        Args:
            model: a `LatentDiffusion` or a diffusers pipeline (also one of `FAMILIES` of `ldm.models.pipeline_families`).
            dataset: a folder of captioned pictures, a tar or a table, several of these, an `ImageFolder`, a `Mixture`, or
                a dataset of your own (torch's, Hugging Face's, a list of mappings, a stream: see `PictureRows`); for a
                `Hypernetwork` a folder with one folder of pictures for each style, or a mapping of their names to any
                of these.
            validation: the same, held out; else `validation_share` of the pictures (or styles).
            resume: go on from the run's newest checkpoint, or from the one ``at`` a step.
            held, on_begin: see `Trainer.train`.

        Raises:
            UserError: see `Trainer.train`; and whatever is wrong with the pictures.
        """
        with contextlib.ExitStack() as stack:
            if not held:
                stack.enter_context(opened_run(self.run, resume=resume, at=at))
            objective = prepared(self.run, lambda: self._open(model, dataset, validation), self.should_stop)
            stack.callback(self.hypernetwork.eval)
            stack.callback(objective.close)
            trainer = Trainer(
                objective,
                self._loop(objective),
                self.run,
                on_progress=self.on_progress,
                should_stop=self.should_stop,
                optimizer_factory=self.optimizer_factory,
                learning_rate=self.learning_rate,
            )
            if self.optimizer_state is not None and not resume:
                self._begin_with(trainer.optimizer, self.optimizer_state)
            self.optimizer = trainer.optimizer
            return trainer.train(resume=resume, at=at, held=True, on_begin=on_begin)

    def _loop(self, objective: "HypernetworkObjective | GeneratorObjective") -> TrainerConfig:
        """What the loop is told; a preset's patience must not keep a few pictures, of which none are held out, from it."""
        loop = self.config.trainer(len(objective.data))
        if loop.patience is None or objective.is_validated or not self.config.validation_share:
            return loop
        if is_main():
            log.warning(
                "patience is left out: with so few none are held out to judge by; give 'validation' to stop early"
            )
        return loop.model_copy(update={"patience": None})

    def _begin_with(self, optimizer: Any, state: OptimizerState) -> None:
        """Take an earlier training's moments, or say why the optimizer begins anew."""
        assert isinstance(self.hypernetwork, AttentionHypernetwork)
        if state.warning is not None:
            log.warning(
                "%s; its moments are used all the same: remove it to begin with new ones", state.warning
            )
        try:
            check_fits(state, self.hypernetwork)
        except UserError as error:  # other programs leave some parameters out of the optimizer
            log.warning("the optimizer begins anew: %s", error)
            return
        restore_moments(optimizer, state.optimizer_name, state.state_dict)

    def optimizer_state_dict(self) -> tuple[str, dict[str, Any]]:
        """(torch's class, state) of the optimizer after a training, for `write_optimizer`."""
        assert self.optimizer is not None, "call train first"
        inner = getattr(self.optimizer, "optimizer", self.optimizer)  # Accelerate wraps it
        return type(inner).__name__, inner.state_dict()

    def objective(
        self, model: Any, dataset: Any, validation: Any = None
    ) -> "HypernetworkObjective | GeneratorObjective":
        """Everything opened, encoded and attached, as `train` does it; call its ``close`` in the end, which leaves
        the model as it was found.

        For the finders, and for loops of one's own.

        Raises:
            UserError: whatever is wrong with the pictures or the model.
        """
        return main_first(lambda: self._open(model, dataset, validation))

    def _open(
        self, model: Any, dataset: Any, validation: Any
    ) -> "HypernetworkObjective | GeneratorObjective":
        opened = as_model(model)
        found = ModuleAsFound(opened)
        try:
            objective = self._opened(opened, dataset, validation)
        except BaseException:
            found.restore()
            raise
        close = objective.close

        def closed() -> None:
            close()
            found.restore()

        objective.close = closed  # type: ignore[method-assign]
        return objective

    def _opened(
        self, opened: LatentDiffusion, dataset: Any, validation: Any
    ) -> "HypernetworkObjective | GeneratorObjective":
        self.config.check_model(opened)
        check_precision(self.config.mixed_precision, join())
        opened.to(join()).requires_grad_(False).eval()
        lay_out(opened, self.config)
        if isinstance(self.config, GeneratorConfig):
            assert isinstance(self.hypernetwork, Hypernetwork)
            if self._target_layers is not None:
                self.hypernetwork.bind(opened).check_layers(self._target_layers, TargetNetwork(opened))
            return generator_objective(
                opened,
                self.hypernetwork,
                self.config,
                dataset,
                validation,
                self.run,
                self.on_prepare,
                loss=self.loss,
                compute=self.compute,
            )
        return self._of_one_style(opened, self.config, dataset, validation)

    def _of_one_style(
        self, opened: LatentDiffusion, c: HypernetworkConfig, dataset: Any, validation: Any
    ) -> HypernetworkObjective:
        assert isinstance(self.hypernetwork, AttentionHypernetwork | TunedWeights)
        train, held_out = pictures_of(opened, c, dataset, validation, self.look)
        about: dict[str, Any] = {
            "seed": c.seed,
            "missing": c.missing,
            "classes": c.classes,
            "condition_folder": c.condition_folder,
        }
        check_wanted(opened, c.prompts or [])  # before anything is encoded, as what pictures are told beside
        pictures: list[Pictures] = [train] if held_out is None else [train, held_out]
        for some in pictures:
            conditioned(opened, some, some, **about)
        order = BatchOrder(train.groups, c.batch_size, c.seed)
        captions = ["", *captions_seen(train, order, c.steps(len(train)))]
        if held_out is not None:
            captions += [held_out.caption(i, 0) for i in range(len(held_out))]
        cache = self.run / "cache"
        texts = None
        if opened.conditioning == "text":
            texts = cached_texts(opened, captions, cache / "texts", self.on_prepare)
        data, held = cached_latents(
            opened,
            (train, held_out),
            cache / "latents",
            posterior=c.latent_sampling,
            on_prepare=self.on_prepare,
        )
        assert data is not None
        if texts is None and opened.conditioning == "text":
            log.warning(
                "%d different captions are too many to keep: each is encoded in its step", len(captions)
            )
        return HypernetworkObjective(
            opened,
            self.hypernetwork,
            c,
            conditioned(opened, data, train, **about),
            held_out=held and held_out and conditioned(opened, held, held_out, **about),
            texts=texts,
            loss=self.loss,
            compute=self.compute,
        )


def lay_out(model: LatentDiffusion, config: AdapterSettings) -> None:
    """Have a model compute as the settings of memory say; `ModuleAsFound` takes it back."""
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()  # type: ignore[operator]
    if config.channels_last:
        model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _settings(
    hypernetwork: AttentionHypernetwork | TunedWeights | Hypernetwork,
    given: Mapping[str, Any] | HypernetworkConfig | GeneratorConfig | None,
) -> HypernetworkConfig | GeneratorConfig:
    kind = GeneratorConfig if isinstance(hypernetwork, Hypernetwork) else HypernetworkConfig
    config: Any = given if isinstance(given, kind) else load_config(kind, dict(given or {}))
    if isinstance(config, HypernetworkConfig) and not config.trigger:
        # [name] in templates is the network's, as in the webui
        config = config.model_copy(update={"trigger": hypernetwork.name})
    adamw = config.learning_rate is None and resolve(config.optimizer) == "adamw"
    if adamw and isinstance(hypernetwork, AttentionHypernetwork):
        widest = max(pair.width for _, pair in hypernetwork.pairs())
        config = config.model_copy(update={"learning_rate": usual_rate(widest)})
    return config  # type: ignore[no-any-return]


def pictures_of(
    model: LatentDiffusion,
    config: HypernetworkConfig,
    dataset: Any,
    validation: Any = None,
    look: LookAt | None = None,
) -> tuple[Pictures, Pictures | None]:
    """Training and held-out pictures for a model.

    Raises:
        UserError: see `open_pictures`.
    """
    about: dict[str, Any] = {
        "size": config.size or model.image_size,
        "downscale": model.downsampling,
        "multiple": model.size_unit,
        "seed": config.seed,
        "look": look,
    }
    data = open_pictures(dataset, config, **about)
    if validation is None:
        return hold_out(data, config.validation_share, config.seed)
    held = open_pictures(validation, config, **about, held_out=True)
    return data, over_folders(held, ImageFolder.without_chance)
