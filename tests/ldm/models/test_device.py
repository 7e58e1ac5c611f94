"""A graphics card that is not there; the rest of the setting is in test_latents.py."""

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.device import Placement, best_device, place, placement


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_cards")
def test_cuda_in_plain_words() -> None:
    assert best_device().type == "cuda"
    assert placement("cuda:1") == Placement(torch.device("cuda", 1), torch.float16)
    assert placement("cuda", "bf16", "flash", "model").offload == "model"
    with pytest.raises(UserError, match="device 'cuda:2' is not there: torch sees 2 CUDA GPUs"):
        placement("cuda:2")
    with pytest.raises(UserError, match="'flash' needs CUDA with fp16 or bf16"):
        placement("cuda", "fp32", "flash")


def test_metal_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert placement() == Placement(torch.device("mps"), torch.float16)
    with pytest.raises(UserError, match="'flash' needs CUDA"):
        placement("mps", attention="flash")


def test_offload_is_for_pipelines(tiny: LatentDiffusion) -> None:
    with pytest.raises(UserError, match=r"offload works on a pipeline; take model.pipeline\(\) first"):
        place(tiny, Placement(torch.device("cpu"), torch.float32, offload="model"))
    assert place(tiny, placement("cpu", "bf16")).dtype == torch.bfloat16
