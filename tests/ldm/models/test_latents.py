"""Tools of the latent space."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hyperbrush.errors import UserError
from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models import latents as tools
from hyperbrush.ldm.models.device import Placement, place, placement
from hyperbrush.ldm.pictures import grid, to_pictures


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_slerp_keeps_the_norm_and_meets_its_ends() -> None:
    a, b = noise(3, 4, 16, 16), noise(3, 4, 16, 16, seed=1)
    torch.testing.assert_close(tools.slerp(a, b, 0.0), a)
    torch.testing.assert_close(tools.slerp(a, b, 1.0), b)
    middle = tools.slerp(a, b, 0.5)
    expected = (a.flatten(1).norm(dim=1) + b.flatten(1).norm(dim=1)) / 2
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), expected, rtol=0.02, atol=0)
    assert ((a + b) / 2).norm() < 0.8 * middle.norm()
    torch.testing.assert_close(tools.slerp(a, a, 0.3), a)
    quarter = tools.slerp(torch.tensor([[1.0, 0]]), torch.tensor([[0, 1.0]]), 1 / 3)
    torch.testing.assert_close(quarter, torch.tensor([[3**0.5 / 2, 0.5]]))


def test_channel_statistics_round_trip() -> None:
    x = noise(8, 4, 5, 5) * torch.tensor([1, 2, 3, 4.0])[:, None, None] + 7
    mean, std = tools.channel_statistics(x)
    flat = tools.normalise_channels(x, mean, std)
    torch.testing.assert_close(flat.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std((0, 2, 3)), torch.ones(4))
    torch.testing.assert_close(tools.denormalise_channels(flat, mean, std), x)


def test_preview_finds_a_linear_decoder() -> None:
    matrix = noise(5, 3) * 0.1
    latents = noise(6, 4, 8, 8)
    rgb = torch.einsum("bchw,cr->brhw", latents, matrix[:-1]) + matrix[-1][:, None, None]
    images = F.interpolate(rgb, scale_factor=4, mode="nearest")
    found = tools.fit_preview(latents, images)
    torch.testing.assert_close(found, matrix, atol=1e-5, rtol=1e-4)
    assert tools.quick_preview(latents, found).shape == (6, 3, 8, 8)
    torch.testing.assert_close(
        tools.quick_preview(latents, found), (rgb / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0
    )


def test_tiles_meet_without_a_seam() -> None:
    def decode(z: torch.Tensor) -> torch.Tensor:
        return F.interpolate(z[:, :3], scale_factor=2, mode="nearest")

    z = noise(1, 4, 37, 50)
    sizes: list[torch.Size] = []

    def watched(part: torch.Tensor) -> torch.Tensor:
        sizes.append(part.shape)
        return decode(part)

    whole = tools.decode_tiled(watched, z, 2, tile=16, overlap=4)
    torch.testing.assert_close(whole, decode(z), atol=1e-6, rtol=0)
    assert len(sizes) == 3 * 4
    assert {s[-2:] for s in sizes} == {(16, 16)}
    with pytest.raises(UserError, match="must be smaller"):
        tools.decode_tiled(decode, z, 2, tile=8, overlap=8)


def test_tiled_decoding_of_a_model(tiny: LatentDiffusion) -> None:
    z = noise(1, 4, 16, 16)
    torch.testing.assert_close(tiny.decode(z, tiled=True), tiny.decode(z))
    large = noise(1, 4, 80, 72)
    assert tiny.decode(large, tiled=True).shape == (1, 3, 160, 144)


def test_placement_in_plain_words() -> None:
    assert placement("cpu") == Placement(torch.device("cpu"), torch.float32)
    assert placement("cpu", "bf16").dtype == torch.bfloat16
    assert placement().device.type in ("cpu", "cuda", "mps")
    for words, message in (
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"precision": "fp8"}, "did you mean"),
        ({"attention": "xformer"}, "unknown attention backend"),
        ({"offload": "all"}, "unknown offload"),
        ({"device": "cpu", "offload": "model"}, "no(ne| GPU)|there is none"),
    ):
        with pytest.raises(UserError, match=message):
            placement(**words)


def test_absent_devices_are_said() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA GPU here"):
            placement("cuda")
    if not torch.backends.mps.is_available():
        with pytest.raises(UserError, match="no Mac with Metal"):
            placement("mps")


@pytest.mark.parametrize("backend", ["sdpa", "sliced", "eager", "flash"])
def test_attention_backends_agree(tiny: LatentDiffusion, backend: str) -> None:
    nn.init.normal_(tiny.unet.conv_out.weight, std=0.1)
    z, t, context = noise(2, 4, 16, 16), torch.tensor([10, 500]), noise(2, 16, 32)
    plain = tiny.diffusion(z, t, context)
    processors = {type(p).__name__ for p in tiny.unet.attn_processors.values()}
    place(tiny, placement("cpu", attention=backend))
    torch.testing.assert_close(tiny.diffusion(z, t, context), plain, atol=1e-5, rtol=1e-4)
    now = {type(p).__name__ for p in tiny.unet.attn_processors.values()}
    assert backend == "sdpa" or now != processors


def test_half_precision_placement(tiny: LatentDiffusion) -> None:
    place(tiny, placement("cpu", "bf16"))
    assert tiny.dtype == torch.bfloat16
    assert tiny.sample(["red square"], steps=1).dtype == torch.float32


def test_pictures_and_grids() -> None:
    x = torch.zeros(3, 3, 4, 4)
    x[1] = 1
    made = to_pictures(x)
    assert made[1].getpixel((0, 0)) == (255, 255, 255)
    page = grid(made, columns=2, gap=1, background="red")
    assert page.size == (9, 9)
    assert page.getpixel((8, 8)) == (255, 0, 0)
