"""Every parser takes any input: a valid result or one UserError; a bounded number of the inputs of fuzz/."""

import importlib.util
import sys
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).parents[2] / "fuzz"
TARGETS = ("tags", "learning_rate", "infotext", "pt", "safetensors", "optim")
BOUNDED = settings(
    max_examples=250,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", FUZZ / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


mutate = _module("mutate").mutate
targets = _module("targets")


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs(name: str) -> None:
    target = targets.TARGETS[name]
    answers = []

    @BOUNDED
    @given(st.randoms(use_true_random=False), st.integers(0, len(target.seeds()) - 1))
    def check(random: Random, seed: int) -> None:
        data = target.seeds()[seed]
        for _ in range(4):  # one input leads to the next, four from each that hypothesis draws
            data = mutate(data, target.words, random)
            answers.append(target(data))

    check()
    assert len(answers) >= 500
    # Changes that were all refused at the first byte, or all accepted, would test nothing.
    assert {True, False} <= set(answers) or name in ("tags", "infotext")


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name: str) -> None:
    target = targets.TARGETS[name]
    words = st.sampled_from(target.words)

    @BOUNDED
    @given(
        st.lists(
            words
            | st.binary(max_size=20)
            | st.text(max_size=9).map(lambda text: text.encode("utf-8", "replace")),
            max_size=30,
        )
    )
    def check(parts: list[bytes]) -> None:
        target(b"".join(parts))

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_the_valid_inputs_are_accepted(name: str) -> None:
    target = targets.TARGETS[name]
    assert all(target(seed) for seed in target.seeds())
