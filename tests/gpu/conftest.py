"""Every test here runs on a GPU where there is one (`make test-gpu`), and as a rehearsal on the CPU."""

import pytest
import torch


def needs_gpus(count: int) -> None:
    if torch.cuda.device_count() < count:
        pytest.skip(
            f"needs {count} CUDA device{'s' if count > 1 else ''}, this machine has {torch.cuda.device_count()}"
        )


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> str:
    """Where the commands of a test train."""
    if request.param == "cuda":
        needs_gpus(1)
    else:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return request.param
