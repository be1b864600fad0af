"""The sources that there are, by the name that the command line gives them."""

from trainers.data.events import kuailive, kuailive_m3, kuairand
from trainers.data.events.model import Adapter

ADAPTERS: dict[str, Adapter] = {module.ADAPTER.name: module.ADAPTER for module in (kuailive, kuailive_m3, kuairand)}
