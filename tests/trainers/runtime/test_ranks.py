import subprocess
import sys
import textwrap

import torch

from livetrain.trainers.runtime import ranks


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


def test_the_threads_of_a_group_that_is_kept_in_a_cycle_end_before_the_interpreter():
    """They would meet its clean-up halfway through; a training leaves such cycles."""
    code = """
        import atexit, gc, os, time
        gc.disable()  # or it may clear the cycle before the end
        import torch.distributed as dist

        def threads():
            names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
            return [name.strip() for name in names if "gloo" in name]

        atexit.register(lambda: print(threads()))  # called last
        from livetrain.trainers.runtime import ranks

        class Trainer:
            pass

        with ranks.alone(False):
            kept = Trainer()
            kept.itself, kept.group = kept, dist.group.WORLD
            del kept
        for _ in range(100):  # a thread has its name a moment after it has begun
            if not threads():
                time.sleep(0.1)
        print(threads())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert "gloo" in before
    assert after == "[]"
