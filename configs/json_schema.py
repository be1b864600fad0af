"""The JSON schema of recipes, from which editors complete and check keys."""

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from livetrain.configs import registry
from livetrain.configs.schema import Recipe


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, `model` being one of the registered kinds. Editors complete keys from it."""
    classes: list[type[BaseModel]] = [
        Recipe,
        *(config for kinds in registry.ALL for config in kinds.configs().values()),
    ]
    modes: list[tuple[type[BaseModel], Literal["validation"]]] = [
        (config, "validation") for config in dict.fromkeys(classes)
    ]
    places, schema = models_json_schema(modes, ref_template="#/$defs/{model}")
    definitions = schema["$defs"]
    recipe = definitions["Recipe"]
    recipe["properties"]["model"] = _one_of(registry.MODELS, places, definitions) | {"title": "Model"}
    recipe["properties"]["gradients"] |= _one_of(registry.COMBINERS, places, definitions)
    recipe["properties"]["gradients"].pop("$ref", None)
    for section, kinds in (("features", registry.FEATURES), ("tasks", registry.TASKS), ("tables", None)):
        named = recipe["properties"][section]["patternProperties"]
        for pattern, one in named.items():
            declared = _one_of(kinds, places, definitions) if kinds else one
            named[pattern] = {"anyOf": [declared, {"type": "null", "description": "takes away what the base has"}]}
    optimizers = definitions["Optimizers"]["properties"]
    for part, kinds in (("sparse", registry.OPTIMIZERS), ("dense", registry.DENSE_OPTIMIZERS)):
        optimizers[part] |= _one_of(kinds, places, definitions)
        optimizers[part].pop("$ref", None)
    of_table = definitions["Table"]["properties"]["optimizer"]
    of_table["anyOf"] = [*_one_of(registry.OPTIMIZERS, places, definitions)["oneOf"], {"type": "null"}]
    recipe["properties"]["base"] = {"type": "string", "description": "recipe file that this one is put over"}
    recipe |= {"if": {"required": ["base"]}, "else": {"required": recipe.pop("required")}}
    for base in ("ModelConfig", "Feature"):
        definitions.pop(base, None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "livetrain recipe",
        "$ref": "#/$defs/Recipe",
        "$defs": definitions,
    }


def _one_of(kinds: registry.Kinds, places: dict, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a section that is one of some kinds, each by its own class."""
    by_class: dict[type, list[str]] = {}
    for kind, config in kinds.configs().items():
        by_class.setdefault(config, []).append(kind)
    options = []
    for config, names in by_class.items():
        options.append(places[config, "validation"])
        part = definitions[options[-1]["$ref"].rsplit("/", 1)[1]]
        part["properties"][kinds.key] |= {"enum": names}
        part["properties"][kinds.key].pop("const", None)
        if kinds.default not in names:
            part["required"] = sorted({*part.get("required", []), kinds.key})
    return {"oneOf": options}
