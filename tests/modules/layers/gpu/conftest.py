"""Kernels for GPUs: run by one where there is one, elsewhere by Triton's interpreter on the CPU (tests/conftest.py).

Triton is larger than PyTorch for CPUs, and nothing that a CPU needs: without it these tests are skipped.
"""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
