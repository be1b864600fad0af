"""Pages made from the code itself while the site is built: the recipe reference, the commands, the architecture."""

import atexit
import contextlib
import inspect
import json
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from livetrain.cluster.parcel import staged
from livetrain.configs import registry
from livetrain.configs.json_schema import json_schema
from livetrain.configs.schema import Recipe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))
import picture  # noqa: E402
import structure  # noqa: E402

# Sections that are of one of several kinds, to which others can be added.
OPEN = {
    "features.NAME": registry.FEATURES,
    "model": registry.MODELS,
    "tasks.NAME": registry.TASKS,
    "gradients": registry.COMBINERS,
    "optimizers.sparse": registry.OPTIMIZERS,
    "optimizers.dense": registry.DENSE_OPTIMIZERS,
}
staging = contextlib.ExitStack()
atexit.register(staging.close)


@event_priority(100)  # before mkdocstrings takes its paths
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Have the API read from a copy of the package alone: the repository, which is the package, holds its own .venv."""
    folder = staging.enter_context(staged())
    for path in folder.rglob("*.py"):  # griffe knows the heading of examples in the plural only
        path.write_text(path.read_text(encoding="utf-8").replace(" Example:\n", " Examples:\n"), encoding="utf-8")
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those that lie in docs/."""
    for path, content in (("reference/recipe.md", recipe_page()), ("reference/commands.md", commands_page())):
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what is drawn and measured from the imports."""
    if "{{ picture }}" in markdown:
        made = {"picture": picture.draw(ROOT), "structure": structure.rooms(ROOT), **structure.measures(ROOT)}
        for name, text in made.items():
            markdown = markdown.replace(f"{{{{ {name} }}}}", text)
    return markdown


def recipe_page() -> str:
    """Return the recipe reference: every key of the schema with its type, default and meaning."""
    base = json_schema()["$defs"]["Recipe"]["properties"]["base"]["description"]  # a key of files, not of recipes
    lines = [
        "# Recipe reference",
        "",
        "Made from the schema. `livetrain train --schema` writes the same as a JSON schema, with which an editor"
        " completes and checks recipes. A key without a default must be given. Kinds of"
        " [your own](../guide/extending.md) have the keys of their own classes, and those of the class that theirs"
        " is built on.",
        "",
    ]
    for heading, section, names in sections(Recipe, "", set()):
        lines += [heading, "", summary(section), "", *table(section, names)]
        lines += [f"| `base` | text |  | {base} |"] if section is Recipe else []
        lines.append("")
    return "\n".join(lines)


def sections(section: type[BaseModel], path: str, seen: set[type], kinds: str = "") -> Iterator[tuple[str, type, str]]:
    """Yield every section of a recipe from `path` down, itself first: (heading, class, names of the kinds it is of).

    Args:
        section: the class that checks the section.
        path: dotted; NAME stands for names that the recipe chooses, [] for each entry of a list.
        seen: classes that need not be shown again.
        kinds: how a recipe asks for this class, where a section may be of several.
    """
    if section in seen:
        return
    seen.add(section)
    yield f"## {' '.join(f'`{part}`' for part in (path, kinds) if part) or 'Top level'}", section, kinds
    for name, field in section.model_fields.items():
        below = f"{path}.{name}".lstrip(".")
        below += {dict: ".NAME", list: "[]"}.get(typing.get_origin(field.annotation), "")
        for each, asked in classes_of(below, field.annotation):
            yield from sections(each, below, seen, asked)


def classes_of(path: str, annotation: Any) -> list[tuple[type[BaseModel], str]]:
    """Return the classes that a section may be of, each with how a recipe asks for it, as ``kind: din or dnn``."""
    if path in OPEN:
        named: dict[type, list[str]] = {}
        for kind, config in sorted(OPEN[path].configs().items()):
            named.setdefault(config, []).append(kind)
        return [(config, f"{OPEN[path].key}: {' or '.join(kinds)}") for config, kinds in named.items()]
    classes = list(classes_in(annotation))
    if len(classes) < 2:
        return [(each, "") for each in classes]
    return [(each, f"kind: {typing.get_args(each.model_fields['kind'].annotation)[0]}") for each in classes]


def classes_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a type is made of."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from classes_in(part)


def table(section: type[BaseModel], kinds: str) -> list[str]:
    """Return a section's keys as the lines of a table."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in section.model_fields.items():
        type_ = escaped(words(typing.Annotated[field.annotation, *field.metadata, ""]))
        if kinds.startswith(f"{name}: "):
            type_ = " or ".join(f"`{kind}`" for kind in kinds.removeprefix(f"{name}: ").split(" or "))
        rows.append(f"| `{field.alias or name}` | {type_} | {default_of(field)} | {escaped(field.description or '')} |")
    return rows


def words(annotation: Any) -> str:
    """Return a type with its bounds as people write it."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return " ".join([words(parts[0]), *bounds(parts[1:])])
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(words(part) for part in parts))
    if origin is list:
        return f"list; each entry: {words(parts[0])}"
    if origin is dict:
        return f"mapping of names to {words(parts[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "section"
    return {type(None): "`null`", str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}.get(
        annotation, str(annotation)
    )


def bounds(metadata: Iterable[Any]) -> Iterator[str]:
    """Yield the limits among what annotates a type."""
    limits = {
        "ge": "from {:,}",
        "gt": "above {:,}",
        "le": "to {:,}",
        "lt": "below {:,}",
        "multiple_of": "in steps of {}",
    }
    for part in metadata:
        if isinstance(part, FieldInfo):
            yield from bounds(part.metadata)
        for key, form in limits.items():
            if getattr(part, key, None) is not None:
                yield form.format(getattr(part, key))


def default_of(field: FieldInfo) -> str:
    """Return a key's default, or nothing where it must be given."""
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def summary(section: type[BaseModel]) -> str:
    """Return what a section's docstring says first."""
    return inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def commands_page() -> str:
    """Return every command with its arguments and options, as `--help` shows them."""
    from livetrain.cli.main import app

    lines = ["# Commands", "", "Made from the command line itself; `livetrain COMMAND --help` shows the same.", ""]
    for path, command in commands(typer.main.get_command(app), "livetrain"):
        lines += [f"## {path}", "", inspect.cleandoc(command.help or "").replace("\n\n\n", "\n\n"), ""]
        rows = [
            f"| `{' '.join(parameter.opts) if parameter.param_type_name == 'option' else parameter.metavar}` |"
            f" {escaped(getattr(parameter, 'help', None) or '')} |"
            for parameter in command.params
            if not getattr(parameter, "hidden", False)
        ]
        if rows:
            lines += ["| argument or option | meaning |", "| --- | --- |", *rows, ""]
    return "\n".join(lines)


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command that does something, depth first: (its words, command)."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, below in sorted(command.commands.items()):
        yield from commands(below, f"{path} {name}")
