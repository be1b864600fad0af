"""The kinds of models, features, tasks, combiners and optimizers, by name, with the classes that check their sections.

A kind enters itself when its module is imported (see configs.plugins); no torch is imported here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticKnownError

from livetrain.configs import plugins
from livetrain.configs.errors import BadInput, nearest, shown

Owner = TypeVar("Owner")


class Kinds:
    """The kinds that one section of a recipe may name.

    Args:
        what: the section, for messages.
        key: the key that names the kind.
        default: the kind of a section that names none.
    """

    def __init__(self, what: str, key: str = "kind", default: str | None = None) -> None:
        self.what, self.key, self.default = what, key, default
        self._configs: dict[str, type[BaseModel]] = {}
        self._owners: dict[str, Any] = {}

    def register(self, kind: str, config: type[BaseModel], owner: type) -> None:
        """Make `kind` known: checked by the pydantic class `config`, and what `owner` says it is.

        Of a class that is defined anew, as in a notebook's cell, the newest counts.

        Raises:
            ValueError: another class has this name.
        """
        if kind in self._configs and _name(self._owners[kind]) != _name(owner):
            raise ValueError(f"two {self.what}s call themselves '{kind}'")
        self._configs[kind], self._owners[kind] = config, owner

    def entering(
        self, kind: str, config: type[BaseModel], base: type, named: str | None = None
    ) -> Callable[[type[Owner]], type[Owner]]:
        """Return the decorator that makes a subclass of `base` what `kind` is registered with.

        Args:
            kind: the name in recipes.
            config: checks the section.
            base: which class it must be a subclass of.
            named: how users know that class; its own name by default.

        Raises:
            TypeError: by the decorator: the class is none.
        """

        def enter(owner: type[Owner]) -> type[Owner]:
            if not issubclass(owner, base):
                known = named or base.__name__
                raise TypeError(f"{self.what} '{kind}': {owner.__name__} must be a subclass of {known}")
            self.register(kind, config, owner)
            return owner

        return enter

    def __iter__(self) -> Iterator[str]:
        plugins.load()
        return iter(self._configs)

    def __contains__(self, kind: object) -> bool:
        plugins.load()
        return isinstance(kind, str) and kind in self._configs

    def owner(self, kind: str) -> Any:
        """Return what a kind was registered with.

        Raises:
            BadInput: there is no such kind.
        """
        if kind not in self:
            raise BadInput(f"{self.key}: there is no {self.what} of {self.key} '{kind}'{nearest(kind, self)}")
        return self._owners[kind]

    def owner_of(self, section: Any) -> Any:
        """Return what the kind of a checked section was registered with; None if the section is of other kinds."""
        kind = getattr(section, self.key, "")
        return self._owners[kind] if isinstance(section, self._configs.get(kind, ())) else None

    def entered(self) -> dict[str, Any]:
        """Return the kinds that are known by now, and what they were registered with; no module is imported for it."""
        return dict(self._owners)

    def configs(self) -> dict[str, type[BaseModel]]:
        """Return every kind's config class."""
        plugins.load()
        return dict(self._configs)

    def config(self, section: Any, otherwise: type[BaseModel]) -> type[BaseModel]:
        """Return the class that checks a section, as far as it names a known kind."""
        kind: Any = section.get(self.key, self.default) if isinstance(section, dict) else None
        return self._configs[kind] if kind in self else otherwise

    def parse(self, value: Any) -> Any:
        """Turn a section's mapping into the config class of its kind.

        Raises:
            PydanticKnownError: the kind is missing or unknown.
            pydantic.ValidationError: another key is wrong.
        """
        if not isinstance(value, dict):
            return value
        kind = value.get(self.key, self.default)
        if kind is None:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": f"'{self.key}'"})
        if kind not in self:
            known = ", ".join(f"'{name}'" for name in self)
            named = {"discriminator": f"'{self.key}'", "tag": ascii(kind), "expected_tags": known}
            raise PydanticKnownError("union_tag_invalid", named)
        return self._configs[kind].model_validate(value)


def _name(owner: type) -> str:
    return f"{owner.__module__}.{owner.__qualname__}"


MODELS = Kinds("model")
FEATURES = Kinds("feature", key="type")
TASKS = Kinds("task", default="binary")
OPTIMIZERS = Kinds("optimizer", default="rowwise_adagrad")
DENSE_OPTIMIZERS = Kinds("dense optimizer", default="adam")
COMBINERS = Kinds("combiner", default="sum")
ALL = (MODELS, FEATURES, TASKS, COMBINERS, OPTIMIZERS, DENSE_OPTIMIZERS)


def parse_model(value: Any) -> Any:
    """Turn a recipe's `model` mapping into the config class of its kind.

    Raises:
        BadInput: `kind` is missing or unknown.
        pydantic.ValidationError: another key is wrong.
    """
    if not isinstance(value, dict):
        return value
    kind = value.get("kind")
    if kind is None:
        raise BadInput(f"model.kind is missing{nearest('', MODELS)}")
    if kind not in MODELS:
        hint = nearest(kind if isinstance(kind, str) else "", MODELS)
        raise BadInput(
            f"model.kind: there is no model {shown(kind)}{hint}; one of your own needs its module under plugins"
        )
    return MODELS.parse(value)


def origins(part: Any, place: str = "") -> Iterator[tuple[str, type]]:
    """Yield the place of every section of a recipe and the classes that it comes from, as ("model", DINConfig)."""
    if isinstance(part, BaseModel):
        yield place, type(part)
        yield from ((place, owner) for kinds in ALL if (owner := kinds.owner_of(part)))
        part = part.__dict__
    inner = part.items() if isinstance(part, Mapping) else enumerate(part) if isinstance(part, list | tuple) else ()
    for key, value in inner:
        yield from origins(value, f"{place}.{key}".lstrip("."))


def complete(recipe: BaseModel, named: list[str]) -> list[str]:
    """Return the modules named and those that the recipe's kinds come from otherwise: installed, or just imported.

    Written into the run's config.yaml they bring the kinds along wherever the run is read, resumed, scored or sent.
    """
    found = {kind.__module__: None for _, kind in origins(recipe) if not _is_local(kind)}
    inside = ("livetrain", *named)
    return named + [module for module in found if not any(f"{module}.".startswith(f"{name}.") for name in inside)]


def check_shared(recipe: BaseModel) -> None:
    """Raise BadInput where no other process can import a recipe's kinds."""
    for place, kind in origins(recipe):
        if _is_local(kind):
            raise BadInput(
                f"{place}: {kind.__name__} is defined in a notebook cell, a script or a function, where no other "
                "process can import it; move it to a module and name that under plugins; only training with "
                "cluster.workers=0 does without"
            )


def _is_local(kind: type) -> bool:
    return kind.__module__ == "__main__" or "<locals>" in kind.__qualname__
