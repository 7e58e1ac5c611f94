"""The first stage's loss, term by term."""

import math

import pytest
import torch

from hyperbrush.errors import UserError
from hyperbrush.ldm.modules.losses import (
    FirstStageLoss,
    PatchDiscriminator,
    gradient_loss,
    hinge_discriminator_loss,
    kl_to_standard_normal,
    psnr,
)

PICTURE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
MADE = PICTURE * 0.5


def test_kl_is_the_closed_form() -> None:
    mean, logvar = torch.tensor([[0.3]]), torch.tensor([[math.log(0.25)]])
    p, q = torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(p, q).mean()
    torch.testing.assert_close(kl_to_standard_normal(mean, logvar), expected)


def test_gradient_loss_sees_edges_only() -> None:
    assert float(gradient_loss(PICTURE, PICTURE + 0.3)) == pytest.approx(0, abs=1e-6)
    edge = torch.zeros(1, 1, 4, 4)
    edge[..., 2:] = 1
    assert float(gradient_loss(edge, torch.zeros(1, 1, 4, 4))) == pytest.approx(4 / 12)


@pytest.mark.parametrize(
    ("term", "extra"),
    [
        ("l1", {}),
        ("mse", {}),
        ("gradient", {}),
        ("log_mse", {}),
        ("kl", {"mean": torch.ones(2, 4), "logvar": torch.zeros(2, 4)}),
        ("quantise", {"quantise": torch.tensor(0.2)}),
    ],
)
def test_each_term_turned_on_counts(term: str, extra: dict) -> None:
    off = {"l1": 0, "mse": 0, "gradient": 0, "kl": 0, "quantise": 0}
    assert FirstStageLoss(**off).terms(PICTURE, MADE, **extra) == {}
    one = FirstStageLoss(**(off | {term: 1.0})).terms(PICTURE, MADE, **extra)
    two = FirstStageLoss(**(off | {term: 2.0})).terms(PICTURE, MADE, **extra)
    assert list(one) == [term]
    torch.testing.assert_close(two[term], 2 * one[term])
    assert float(one[term].abs()) > 0


def test_perceptual_and_adversarial() -> None:
    loss = FirstStageLoss(
        perceptual_weight=2.0,
        perceptual=lambda a, b: (a - b).abs().max(),
        adversarial_weight=0.5,
        adversarial_start=10,
    )
    assert not loss.adversarial(9)
    assert loss.adversarial(10)
    terms = loss.terms(PICTURE, MADE, fake_logits=torch.tensor([1.0, 3.0]))
    assert float(terms["adversarial"]) == -1.0
    torch.testing.assert_close(terms["perceptual"], 2 * (PICTURE - MADE).abs().max())
    logits = PatchDiscriminator()(PICTURE)
    assert logits.shape == (2, 1, 2, 2)
    good = hinge_discriminator_loss(torch.tensor([2.0]), torch.tensor([-2.0]))
    bad = hinge_discriminator_loss(torch.tensor([-2.0]), torch.tensor([2.0]))
    assert (float(good), float(bad)) == (0.0, 3.0)


def test_psnr() -> None:
    a = torch.full((1, 3, 4, 4), 0.5)
    assert float(psnr(a, a + 0.1)) == pytest.approx(20.0, abs=1e-3)


def test_a_perceptual_weight_needs_a_function() -> None:
    with pytest.raises(UserError, match="no perceptual function"):
        FirstStageLoss(perceptual_weight=1.0)
    assert "perceptual" not in FirstStageLoss(perceptual=lambda a, b: a.mean()).terms(PICTURE, MADE)
