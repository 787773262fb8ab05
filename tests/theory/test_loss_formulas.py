"""Losses of denoisers and their gradients against formulas written by hand."""

from __future__ import annotations

import pytest
import torch

from loss_cases import by_hand, case, close, ours


@pytest.mark.parametrize("block", range(10))
def test_losses_and_gradients_are_the_formulas(block: int) -> None:
    """A thousand combinations of loss, schedule, prediction, weighting, precision, shape, noise and output."""
    for number in range(100 * block, 100 * block + 100):
        c = case(number)
        x, exact = (c.x.clone().requires_grad_() for _ in range(2))
        loss, expected = ours(c, c.net, x, number), by_hand(c, c.net, exact, number)
        assert loss.dtype == (torch.float64 if c.dtype == torch.float64 else torch.float32) and loss.shape == c.t.shape
        close(c, loss.detach(), expected.detach())
        parameters = list(c.net.parameters())
        ours_of = torch.autograd.grad(loss.sum(), parameters, retain_graph=True)
        for found, right in zip(
            ours_of, torch.autograd.grad(expected.sum(), parameters, retain_graph=True), strict=True
        ):
            close(c, found, right.double())
        if c.loss in ("denoising", "edm"):
            found, right = (torch.autograd.grad(of.sum(), at)[0] for of, at in ((loss, x), (expected, exact)))
            close(c, found, right.double())
