"""The pages: what they link to and put in is there, and the site is built strictly, without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from livetrain.configs import registry

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
