"""What the device of a training decides. `torch.cuda.set_device` is PyTorch's; the driver below it is not there."""

from __future__ import annotations

import pytest
import torch
from regzoo.engines import loading_workers, mixed_precision, use_device


@pytest.mark.parametrize(
    ("device", "current"), [("cuda", []), ("cuda:1", [1]), (torch.device("cuda", 0), [0]), ("cpu", [])]
)
def test_the_current_gpu(device: str | torch.device, current: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", made.append, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    use_device(device)
    assert made == current
    assert torch.backends.cudnn.benchmark == (torch.device(device).type == "cuda")


def test_the_cpu_trains_in_float32_and_loads_its_own_data() -> None:
    assert not mixed_precision("cpu") and loading_workers("cpu") == 0
    assert loading_workers("cuda:1") > 0
