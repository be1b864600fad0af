"""The pages: what they link to and put in is there, and the site is built strictly, without a network."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import ValidationError

import livetrain.modules  # noqa: F401 - the kinds
from livetrain.cli.main import app
from livetrain.configs import registry
from livetrain.configs.blend_spec import BlendSpec
from livetrain.configs.event_spec import EventSpec
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.configs.spec import Spec
from livetrain.configs.stream_spec import StreamSpec, load_stream
from livetrain.configs.trees import parse

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MADE = {DOCS / "reference/recipe.md", DOCS / "reference/commands.md"}  # while the site is built
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_what_a_page_links_to_and_puts_in_is_there(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    assert not [
        link for link in links if (page.parent / link).resolve() not in MADE and not (page.parent / link).exists()
    ]
    assert len(re.findall(r"(?m)^-- ?8", text)) == len(re.findall(r'(?m)^--8<-- "', text))  # a formatter may break them
    assert not [part for part in re.findall(r'--8<-- "([^"]+)"', text) if not (ROOT / part).exists()]


def test_every_page_is_in_the_navigation():
    def pages(entry):
        inner = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else None
        return [entry] if inner is None else [page for part in inner for page in pages(part)]

    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = pages(yaml.safe_load(text)["nav"])
    assert {DOCS / page for page in named} == {*PAGES, *MADE}


@pytest.mark.slow
def test_the_site_is_built_strictly_and_asks_nobody_for_anything(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs comes with the extra docs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|img|link rel="(?:stylesheet|preload)")[^>]*?(?:src|href)="(\w+:)?//', page.read_text()
        )
        assert not fetched, page
    recipe = (tmp_path / "reference/recipe/index.html").read_text()
    for kinds in (registry.MODELS, registry.FEATURES, registry.TASKS, registry.OPTIMIZERS):
        assert not [kind for kind in kinds if f"<code>{kind}</code>" not in recipe]
    assert "<svg" in (tmp_path / "architecture/index.html").read_text()
    assert "class Gated" in re.sub(r"<[^>]+>", "", (tmp_path / "guide/extending/index.html").read_text())


def blocks(language):
    """Return page, line and text of each block of a language, of the pages and of README."""
    return [
        (page, text[: block.start()].count("\n") + 1, block[1])
        for page in [*PAGES, ROOT / "README.md"]
        for text in [page.read_text(encoding="utf-8")]
        for block in re.finditer(rf"(?ms)^```{language}\n(.*?)^```", text)
    ]


def spec_of(tree):
    """Return what a block of YAML, whole or in part, is one of; by keys that no other has."""
    by = {"log": Spec, "exposures": EventSpec, "sequences": EventSpec, "topics": StreamSpec, "jobs": StreamSpec}
    return next((kind for key, kind in (by | {"channels": BlendSpec}).items() if key in tree), Recipe)


def faults(tree):
    """Return what is wrong with a block, where it is: not what is missing, for most show a part."""
    try:
        spec_of(tree).model_validate(tree)
    except ValidationError as error:
        return [(each["loc"], each["msg"]) for each in error.errors() if each["type"] != "missing" and each["input"]]
    return []


def test_what_blocks_of_yaml_say_is_in_the_schema():
    seen = 0
    for page, line, text in blocks("yaml"):
        if "--8<--" in text or "..." in text or "my_package" in text:  # a file that other tests read; a part of a kind
            continue
        tree, _ = parse(text)
        tree = {"data": {"negatives": tree}} if "hard" in tree else tree
        tree.pop("base", None)
        assert not faults(tree), f"{page.name}:{line}"
        seen += 1
    assert seen > 40
    assert faults({"tables": {"room": {"rows": 8, "evicted": {"days": 3}}}, "follow": {"path": "x", "shed": "1h"}})


def test_the_streams_and_the_nights_of_the_guide_load(tmp_path):
    def block(page, place):
        return [text for path, _, text in blocks("yaml") if path.name == page][place]

    events = next(text for _, _, text in blocks("yaml") if "exposures: >" in text)
    (tmp_path / "rooms.yaml").write_text(events)
    spec, running = block("streams.md", 0), block("streams.md", 1)
    (tmp_path / "rooms_stream.yaml").write_text(spec + running)
    assert load_stream(tmp_path / "rooms_stream.yaml").spec.jobs.join.memory_mb == 1500
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "night.yaml").write_text(block("following.md", 1))
    recipe = load_recipe(tmp_path / "night.yaml")
    assert recipe.follow is not None
    assert recipe.tables["room"].hash == "table"


def test_commands_have_the_options_that_pages_give_them():
    root, seen = typer.main.get_command(app), 0
    for page, line, text in blocks("bash"):
        for said in re.sub(r"\\\n", " ", text).splitlines():
            words = shlex.split(said, comments=True)
            if not words or words[0] != "livetrain":
                continue
            command, words = root, words[1:]
            while words and words[0] in getattr(command, "commands", {}):
                command, words = command.commands[words[0]], words[1:]
            command = getattr(command, "commands", {}).get("search", command)  # of `tune`, which begins with a recipe
            options = {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts}
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given <= options | {"--help"}, f"{page.name}:{line}: {said}"
            assert command is not root, f"{page.name}:{line}: {said}"
            seen += 1
    assert seen > 50
