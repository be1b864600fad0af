"""Pages made from the code itself while the site is built: the recipe reference, the commands, the architecture."""

import atexit
import contextlib
import inspect
import json
import sys
import types
import typing
from collections.abc import Iterator
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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))
import structure  # noqa: E402

staging = contextlib.ExitStack()
atexit.register(staging.close)


@event_priority(100)  # before mkdocstrings takes its paths
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Have the API read from a copy of the package alone: the repository, which is the package, holds its own .venv."""
    folder = Path(staging.enter_context(staged()))
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those that lie in docs/."""
    for path, content in (("reference/recipe.md", recipe_page()), ("reference/commands.md", commands_page())):
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what is measured."""
    return markdown.replace("{{ structure }}", structure.page(ROOT)) if "{{ structure }}" in markdown else markdown


def recipe_page() -> str:
    """Return the recipe reference: every key of the schema with its type, default and meaning."""
    import livetrain.modules.models  # noqa: F401  (registers the kinds)
    from livetrain.configs.registry import configs
    from livetrain.configs.schema import Recipe

    lines = [
        "# Recipe reference",
        "",
        "Made from the schema. `livetrain train --schema` writes the same as a JSON schema, with which an editor"
        " completes and checks recipes. A key without a default must be given.",
        "",
    ]
    for path, section in sections(Recipe, ""):
        lines += [f"## {f'`{path}`' if path else 'Top level'}", "", summary(section), "", *table(section, path), ""]
    lines += ["## `model`, by kind", ""]
    for kind, section in sorted(configs().items()):
        lines += [f"### `kind: {kind}`", "", summary(section), "", *table(section, "model"), ""]
    return "\n".join(lines)


def sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every section of a recipe below `path`, itself first: (dotted path, class)."""
    yield path, model
    for name, field in model.model_fields.items():
        below = f"{path}.{name}" if path else name
        if below == "model":  # one class per kind, see below
            continue
        mapped = typing.get_origin(field.annotation) is dict
        classes = list(classes_in(field.annotation))
        for each in classes:
            kind = discriminator(each) if len(classes) > 1 else ""
            yield from sections(each, below + (".NAME" if mapped else "") + kind)


def discriminator(section: type[BaseModel]) -> str:
    """Return how a recipe asks for this one of several classes, such as `` (type: id)``."""
    for key in ("type", "kind"):
        if key in section.model_fields:
            return f" ({key}: {typing.get_args(section.model_fields[key].annotation)[0]})"
    return ""


def classes_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a type is made of."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from classes_in(part)


def table(section: type[BaseModel], path: str) -> list[str]:
    """Return a section's keys as the lines of a table."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in section.model_fields.items():
        rows.append(f"| `{name}` | {kind_of(field)} | {default_of(field)} | {escaped(field.description or '')} |")
    return rows


def kind_of(field: FieldInfo) -> str:
    """Return a key's type with its bounds, in words."""
    limits = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of", "min_length": "at least"}
    bounds = [
        f"{word} {getattr(part, key)}"
        for part in field.metadata
        for key, word in limits.items()
        if getattr(part, key, None) is not None
    ]
    return ", ".join([escaped(words(field.annotation)), *bounds])


def words(annotation: Any) -> str:
    """Return a type as people write it."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return words(parts[0])
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(words(part) for part in parts))
    if origin is list:
        return f"list of {words(parts[0])}"
    if origin is dict:
        return f"mapping of names to {words(parts[1])}"
    if annotation is type(None):
        return "`null`"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "section"
    return getattr(annotation, "__name__", str(annotation))


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
