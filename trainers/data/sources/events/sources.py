"""The sources that there are, by the name that the command line gives them."""

from livetrain.trainers.data.sources.events import kuailive, kuailive_m3, kuairand
from livetrain.trainers.data.sources.events.model import Adapter

ADAPTERS: dict[str, Adapter] = {module.ADAPTER.name: module.ADAPTER for module in (kuailive, kuailive_m3, kuairand)}
