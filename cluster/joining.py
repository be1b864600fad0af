"""Joining a Ray cluster, or starting one on this machine: what goes wrong there is one sentence."""

from typing import Any

from livetrain.configs.errors import NotNow, short, without_credentials


def join(address: str, **options: Any) -> None:
    """Connect this process to a Ray cluster.

    Args:
        address: of the cluster, or `local` for one of this machine's own, which is started.
        options: of `ray.init`.

    Raises:
        NotNow: nobody answers there, or this machine's own does not start.
    """
    import ray

    try:
        ray.init(address=address, **options)
    except Exception as error:  # a node that starts too slowly raises no kind of its own
        ray.shutdown()
        if address == "local":
            raise NotNow(
                f"cluster.workers: Ray does not start on this machine ({short(error)}); try again once it has "
                "processors and memory free, or train in this process with cluster.workers: 0"
            ) from error
        raise NotNow(
            f"--address: no Ray cluster answers at {without_credentials(address)} ({short(error)}); check that the "
            "head runs (`ray start --head`) and can be reached from here"
        ) from error
