"""Ranks that live as long as the test session: importing torchrec costs seconds per process, so it is paid once."""

import multiprocessing as mp
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _serve(rank: int, world: int, store: str, pipe) -> None:
    import torch
    import torch.distributed as dist

    from livetrain.modules.layers import compiled

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    while (call := pipe.recv()) is not None:
        try:
            function, arguments = pickle.loads(call)
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        compiled.use()  # what a run switched on
    dist.destroy_process_group()


class Pool:
    """`pool.run(function, *arguments)` calls a module-level function on every rank and returns the results by rank."""

    def __init__(self, world: int) -> None:
        context = mp.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        self._pipes, self._workers = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(rank, world, store, theirs), daemon=True)
            worker.start()
            theirs.close()
            self._pipes.append(ours)
            self._workers.append(worker)

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = 300) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(pickle.dumps((function, arguments)))
        results, failures = [], []
        for rank, pipe in enumerate(self._pipes):
            # After one rank failed the others may wait for it for ever.
            if not pipe.poll(timeout if not failures else 5):
                failures.append(f"rank {rank} did not answer")
                continue
            done, value = pipe.recv()
            (results if done else failures).append(value)
        assert not failures, "\n".join(map(str, failures))
        return results

    def close(self) -> None:
        for pipe in self._pipes:
            try:
                pipe.send(None)
            except OSError:
                continue
        for worker in self._workers:
            worker.join(10)
            worker.kill()
        self._folder.cleanup()
