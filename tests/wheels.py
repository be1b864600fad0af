"""A wheel of this checkout."""

import subprocess
import sys
from pathlib import Path

import livetrain

ROOT = Path(livetrain.__file__).parent
OUTSIDE = ("tests", "benchmarks", "notebooks", "docs", "examples", "serve")  # of the package


def tracked() -> list[str]:
    """Return the files of this checkout, new ones too."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


def build(folder: Path) -> Path:
    """Build the wheel, from a copy of the sources that holds no earlier build, and return its path."""
    for name in tracked():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    words = ["wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words, str(folder / "source")], check=True)
    (made,) = folder.glob("*.whl")
    return made
