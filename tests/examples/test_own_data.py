"""The example of docs/guide/own-data.md: its five commands, from CSV to the ten best items per user."""

import csv
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guide"


def block(page: str, name: str) -> str:
    """Return a marked block of a page of the guide."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", (GUIDE / page).read_text(encoding="utf-8"), re.S)
    assert found
    return found[1]


def run(commands: str, folder: Path) -> int:
    """Run commands of livetrain, a line each, in a folder; return how many there are."""
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "livetrain"
        subprocess.run([sys.executable, "-m", program, *arguments], cwd=folder, check=True)
    return len(commands.splitlines())


@pytest.mark.slow
def test_the_five_commands_of_the_page(tmp_path):
    rng = random.Random(1)
    with (tmp_path / "products.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sku", "brand", "tags", "price", "vector"])
        for n in range(30):
            tags = "|".join(rng.sample(["new", "eco", "sale"], rng.randint(0, 3)))
            vector = " ".join(f"{rng.gauss(0, 1):.3f}" for _ in range(64))
            rows.writerow([f"SKU-{n}", rng.choice(["Acme", "Zola"]), tags, f"{rng.uniform(5, 90):.2f}", vector])
    with (tmp_path / "clicks.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["customer", "sku", "time", "clicked", "purchased"])
        for n in range(1200):
            click = rng.random() < 0.4
            bought = click and rng.random() < 0.5
            at = f"2026-05-{1 + n // 60:02} {rng.randrange(24):02}:{rng.randrange(60):02}:00"
            words = ["no", "yes"]
            rows.writerow([f"c-{rng.randrange(8):03}", f"SKU-{rng.randrange(30)}", at, words[click], words[bought]])
    (tmp_path / "space.yaml").write_text("optimizers.dense.lr: {choice: [1e-3, 3e-3]}\n")
    assert run(block("own-data.md", "commands"), tmp_path) == 5
    assert "kind: mmoe" in (tmp_path / "shop.yaml").read_text()
    best = pq.read_table(tmp_path / "best" / "top.parquet").to_pylist()
    users = [row["user_text"] for row in best]
    tested = pq.read_table(tmp_path / "data" / "shop" / "test", partitioning=None)["user_text"].to_pylist()
    assert max(map(tested.count, tested)) > 10
    assert {user: users.count(user) for user in users} == {user: min(10, tested.count(user)) for user in tested}
    for user in set(users):
        scores = [row["clicked_score"] for row in best if row["user_text"] == user]
        assert scores == sorted(scores, reverse=True)
    assert all(row["item_text"].startswith("SKU-") for row in best)
    assert run(block("requests.md", "commands"), tmp_path) == 2
    (tmp_path / "requests.yaml").write_text(block("requests.md", "recipe"))
    run("livetrain train requests.yaml name=requests train.epochs=1", tmp_path)
    trained = (tmp_path / "runs/requests/config.yaml").read_text()
    assert "layout: request" in trained
    assert "kind: mmoe" in trained
