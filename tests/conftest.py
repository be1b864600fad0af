"""What all tests share."""

from collections.abc import Iterator

import pytest
import torch

from tests.pool import Pool

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Pool]:
    """Two gloo ranks, kept for the whole session."""
    pool = Pool(2)
    yield pool
    pool.close()
