"""The interpolation between lattices, against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from regzoo.refinement.lattice import Lattice
from torch.nn.functional import interpolate


@pytest.mark.parametrize(
    ("old", "size"), [((5, 7, 4), (11, 12, 9)), ((9, 6, 8), (4, 6, 3)), ((1, 4, 5), (1, 9, 5)), ((1, 3, 2), (2, 1, 5))]
)
def test_resized(old: tuple[int, ...], size: tuple[int, ...]) -> None:
    values = torch.randn(1, *old, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    truth = interpolate(values.double().movedim(-1, 1), size=size, mode="trilinear", align_corners=True).movedim(1, -1)
    truth = truth * torch.tensor([(n - 1) / max(m - 1, 1) for n, m in zip(size, old, strict=True)][::-1])
    found = Lattice(old, torch.device("cpu")).resized(values, size)
    torch.testing.assert_close(found.double(), truth, atol=1e-5, rtol=1e-5)
    seed = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad(result, values, seed.to(result))[0] for result in (found, truth)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
