"""What a sweep searches: recipe keys and the values that each may take, from a YAML file or a mapping.

    optimizers.dense.lr: {log_uniform: [3e-4, 1e-2]}
    optimizers.schedule.decay: {choice: [constant, linear, cosine]}
    optimizers.schedule.final: {uniform: [0, 0.2], when: {optimizers.schedule.decay: [linear, cosine]}}
    features.history.max_length: {integer: [5, 20]}

A key with `when` is searched where the choices named there were drawn, and is the recipe's own elsewhere.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from livetrain.configs.complaints import first_complaint
from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.load import override
from livetrain.configs.schema import Recipe, Section
from livetrain.configs.schema.data import BATCH
from livetrain.configs.trees import read_tree

# What a sweep holds fixed, and why: a trial must be comparable with the others.
_FIXED = {
    "name": "every trial has a name of its own",
    "cluster": "it changes where a run happens, not what is learned",
    "export": "no trial exports",
    "wandb": "no metric depends on it",
    "evaluate": "all trials must be judged alike",
    "train.select": "all trials must be judged alike",
}
_WHOLE = 64  # integers between two ends that are all checked; of more, as many spread evenly


class Domain(Section):
    """The values of one key. Subclasses say which; `when` says under which drawn choices the key is searched at all."""

    when: dict[str, Any] = {}

    def applies(self, drawn: dict[str, Any]) -> bool:
        """Tell whether the key is searched, given the values drawn for the keys above it."""
        return all(key in drawn and drawn[key] in allowed(wanted) for key, wanted in self.when.items())

    def probes(self) -> list[Any]:
        """Return the values that must each make a valid recipe: all of them, or the ends and some between."""
        raise NotImplementedError

    def sample(self, rng: random.Random) -> Any:
        """Return a value drawn from the domain."""
        raise NotImplementedError


class Choice(Domain):
    """One of the values listed, which may be lists or mappings too."""

    choice: list[Any] = Field(min_length=1)

    def probes(self) -> list[Any]:
        return self.choice

    def sample(self, rng: random.Random) -> Any:
        return rng.choice(self.choice)


class Range(Domain):
    """Values between two ends, both included."""

    def ends(self) -> tuple[float, float]:
        return next(getattr(self, kind) for kind in KINDS if hasattr(self, kind))

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        low, high = self.ends()
        if low >= high:
            raise BadInput(f"{low} to {high} is no range; write the lower end first")
        if isinstance(self, LogUniform) and low <= 0:
            raise BadInput(f"log_uniform from {low}: the lower end must be above 0")
        return self


class Uniform(Range):
    """A number between two ends, all alike likely."""

    uniform: tuple[float, float]

    def probes(self) -> list[Any]:
        low, high = self.uniform
        return [low, low + 0.382 * (high - low), high]

    def sample(self, rng: random.Random) -> Any:
        return rng.uniform(*self.uniform)


class LogUniform(Range):
    """A positive number between two ends, its logarithm uniform."""

    log_uniform: tuple[float, float]

    def probes(self) -> list[Any]:
        low, high = self.log_uniform
        return [low, low * (high / low) ** 0.382, high]

    def sample(self, rng: random.Random) -> Any:
        low, high = self.log_uniform
        return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)


class Integer(Range):
    """A whole number between two ends."""

    integer: tuple[int, int]

    def probes(self) -> list[Any]:
        low, high = self.integer
        spread = {low + (high - low) * part // _WHOLE for part in range(_WHOLE + 1)}
        return sorted(spread | {low + 1})

    def sample(self, rng: random.Random) -> Any:
        return rng.randint(*self.integer)


KINDS: dict[str, type[Domain]] = {"choice": Choice, "uniform": Uniform, "log_uniform": LogUniform, "integer": Integer}
Pick = Callable[[str, Domain], Any]


@dataclass(frozen=True)
class Space:
    """The domains by dotted recipe key, in their order, and where each was written, for messages."""

    domains: dict[str, Domain]
    places: dict[str, str]

    def draw(self, pick: Pick) -> dict[str, Any]:
        """Return a value for every key that applies; `pick` draws them one after the other."""
        drawn: dict[str, Any] = {}
        for key, domain in self.domains.items():
            if domain.applies(drawn):
                drawn[key] = pick(key, domain)
        return drawn

    def sample(self, seed: int, number: int) -> dict[str, Any]:
        """Return the `number`-th random draw, a function of the seed and the number alone."""
        rng = random.Random(f"{seed}/{number}")
        return self.draw(lambda _, domain: domain.sample(rng))

    def check(self, recipe: Recipe, also: Callable[[Recipe], None] = lambda _: None) -> None:
        """Raise BadInput where a key is none of the recipe's, or one of its values makes no valid recipe.

        Every choice and both ends of every range are tried, each with the choices that `when` asks for.

        Args:
            recipe: what the space changes.
            also: told every recipe that was tried, to refuse it too.
        """
        for key, domain in self.domains.items():
            for value in domain.probes():
                try:
                    also(override(recipe, self._context(domain) | {key: value}))
                except BadInput as error:
                    raise BadInput(f"{self.places[key]}: {error}") from None

    def _context(self, domain: Domain) -> dict[str, Any]:
        """Return the choices under which a domain applies: the first allowed of each."""
        context: dict[str, Any] = {}
        for key, wanted in domain.when.items():
            context |= self._context(self.domains[key]) | {key: allowed(wanted)[0]}
        return context

    def tree(self) -> dict[str, Any]:
        """Return the mapping that `parse_space` reads as this space."""
        return {key: domain.model_dump(mode="json", exclude_defaults=True) for key, domain in self.domains.items()}


def load_space(path: str | Path) -> Space:
    """Read a space file.

    Raises:
        BadInput: one sentence that names the file, the line and what would be right.
    """
    tree, lines = read_tree(
        Path(path), "space", "dotted recipe keys, each with choice, uniform, log_uniform or integer"
    )
    return parse_space(tree, {key: f"{path}, line {lines[(key,)]}" for key in tree if (key,) in lines}, str(path))


def parse_space(tree: dict[str, Any], places: dict[str, str] | None = None, source: str = "space") -> Space:
    """Return the space that a mapping describes; see the top of this file.

    Args:
        tree: dotted key -> {choice | uniform | log_uniform | integer: ..., when: ...}.
        places: where each key was written, for messages.
        source: what stands for a key without a place, and for the whole.

    Raises:
        BadInput: a key's domain is none, or may not be searched.
    """
    if not tree:
        raise BadInput(
            f"{source}: there is no key to search; write one, as optimizers.dense.lr: {{uniform: [1e-4, 1e-2]}}"
        )
    space = Space({}, {key: (places or {}).get(key, source) for key in tree})
    for key, value in tree.items():
        try:
            space.domains[key] = _domain(str(key), value, space.domains)
        except BadInput as error:
            raise BadInput(f"{space.places[key]}: {error}") from None
    other, key = (f"data.{way}" for way in BATCH)
    if {other, key} <= set(tree):
        raise BadInput(f"{space.places[key]}: {key} and {other} say the same number; search one of the two")
    return space


def allowed(wanted: Any) -> list[Any]:
    """Return the values that a `when` names: one, or a list of them."""
    return wanted if isinstance(wanted, list) else [wanted]


def _domain(key: str, value: Any, above: dict[str, Domain]) -> Domain:
    for fixed, reason in _FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise BadInput(f"{key} cannot be searched: {reason}; take it out of the space")
    kinds = [kind for kind in KINDS if isinstance(value, dict) and kind in value]
    if len(kinds) != 1:
        raise BadInput(f"{key}: write exactly one of {', '.join(KINDS)}, as {key}: {{uniform: [low, high]}}")
    try:
        domain = KINDS[kinds[0]].model_validate(value)
    except ValidationError as error:
        raise BadInput(f"{key}: {first_complaint(error, KINDS[kinds[0]], value).sentence}") from None
    for other, wanted in domain.when.items():
        choice = above.get(other)
        if not isinstance(choice, Choice):
            choices = [name for name, found in above.items() if isinstance(found, Choice)]
            raise BadInput(f"{key}: when names '{other}', which is no choice written above it{nearest(other, choices)}")
        for one in allowed(wanted) or [None]:
            if one not in choice.choice:
                raise BadInput(f"{key}: when asks for {other}: {one}, which is none of its choices {choice.choice}")
    return domain
