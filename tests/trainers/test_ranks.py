import torch

from trainers import ranks


def test_a_step_s_draws_are_its_own():
    def draw(seed: int, step: int) -> list[float]:
        ranks.seed_step(seed, step)
        return torch.rand(4).tolist()

    assert draw(1, 7) == draw(1, 7)
    assert len({tuple(draw(seed, step)) for seed in (1, 2) for step in (7, 8)}) == 4


def test_seeding_leaves_nothing_behind():
    """A run has millions of steps."""
    before = len(torch.cuda._queued_calls)
    ranks.seed_step(1, 1)
    assert len(torch.cuda._queued_calls) == before
