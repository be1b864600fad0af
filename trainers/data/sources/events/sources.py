"""The sources that there are, by the name that the command line gives them."""

from livetrain.trainers.data.sources.events import kuailive, kuailive_m3, kuairand
from livetrain.trainers.data.sources.events.model import Adapter

ADAPTERS: dict[str, Adapter] = {}


def register_source(adapter: Adapter) -> None:
    """Make an event log known under its adapter's name.

    Raises:
        ValueError: another adapter has this name.
    """
    if ADAPTERS.setdefault(adapter.name, adapter) != adapter:
        raise ValueError(f"two sources call themselves '{adapter.name}'")


for _module in (kuailive, kuailive_m3, kuairand):
    register_source(_module.ADAPTER)
