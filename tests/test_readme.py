"""What the README shows is what the repository holds."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_recipe_shown_is_the_recipe():
    assert blocks("yaml") == [(ROOT / "configs/recipes/din_ml1m.yaml").read_text()]


def test_the_one_python_example_runs_as_it_stands_in_the_demo():
    (example,) = blocks("python")
    compile(example, "README.md", "exec")
    assert len(example.splitlines()) <= 12
    assert "README.md" in (ROOT / "Makefile").read_text()


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named <= targets
    assert {"demo", "test"} <= named
