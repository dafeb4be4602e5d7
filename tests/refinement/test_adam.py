"""Adam against PyTorch's, and without PyTorch's compiler."""

from __future__ import annotations

import subprocess
import sys

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


def test_a_refinement_does_not_import_the_compiler() -> None:
    code = """
import sys, numpy as np, torch
from regzoo.refinement import Volumes, options_for, refine
from regzoo.spatial import Grid
volumes = [Volumes(Grid((12, 12, 12), np.eye(4)), torch.rand(1, 12, 12, 12)) for _ in range(2)]
assert refine(*volumes, options_for("mr", steps=(2, 2))).statistics["steps"] == 4
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
