"""Adam against PyTorch's."""

from __future__ import annotations

import torch
from regzoo.refinement.adam import Adam


def test_the_steps_are_those_of_pytorch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 5, generator=generator)
    parameters, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizer, truth = Adam(parameters, betas=(0.8, 0.95)), torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.95))
    for step in range(10):
        theirs.grad = torch.randn(4, 5, generator=generator)
        truth.param_groups[0]["lr"] = rate = 0.1 / (1 + step)
        optimizer.step(theirs.grad.clone(), rate)
        truth.step()
    assert not torch.equal(parameters, start)
    torch.testing.assert_close(parameters, theirs)
