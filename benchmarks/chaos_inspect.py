"""What must be right when a story of kills is over."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.image import imread

from benchmarks.chaos_kills import Inspection, left
from livetrain.trainers.export import publish
from livetrain.trainers.export.rows import golden_inputs
from livetrain.trainers.runtime import manifest, run_folder, runlog
from livetrain.trainers.runtime.run_folder import find_checkpoint

if TYPE_CHECKING:
    from benchmarks.chaos import Stage, Story


class OfRuns(Inspection):
    """Of a run, its checkpoints, log, report and export, and of a night what it published."""

    def __init__(self, story: "Story", stage: "Stage", golden: "Stage") -> None:
        super().__init__()
        self.stage, self.run, self.wanted = stage, stage.run(story.chain), golden.run(story.chain)
        published = [self.publication] if story.chain == "night" else []
        self.go_through(self.result, self.checkpoints, self.log, self.report, self.exported, *published, self.leftovers)

    def result(self) -> None:
        """result.json is whole and says what the other one says; sums over other numbers of ranks round otherwise."""
        ours, theirs = (json.loads((run / "result.json").read_text()) for run in (self.run, self.wanted))
        self.check(ours.keys() == theirs.keys(), "result.json has other keys")
        self.check(ours["step"] == theirs["step"], f"the run ended at step {ours['step']}, not {theirs['step']}")
        for key in ("test.click.auc", "valid.click.auc"):
            self.check(abs(ours[key] - theirs[key]) < 0.01, f"{key} is {ours[key]:.4f}, not {theirs[key]:.4f}")

    def checkpoints(self) -> None:
        """Every checkpoint is committed and whole, and the best and the last are there."""
        paths = sorted((self.run / "checkpoints").iterdir())
        whole = run_folder.committed(self.run)
        self.check(paths == whole, f"uncommitted: {[path.name for path in paths if path not in whole]}")
        for path in whole:
            damage = manifest.damage(path, manifest.read(path))
            self.check(damage is None, str(damage))
        for which in ("best", "last"):
            find_checkpoint(self.run, which)

    def log(self) -> None:
        """Every step stands once, in order, with the samples of the other run; so do the evaluations, and one test."""
        ours, theirs = (runlog.read(run) for run in (self.run, self.wanted))
        for kind, keys in (("train", ("step", "samples")), ("eval", ("step", "split"))):
            # Which checkpoint is the best, and so the step of the test line, may depend on how sums are rounded.
            lines, wanted = (
                [[line["step"] * (line.get("split") != "test"), line[keys[1]]] for line in log if line["kind"] == kind]
                for log in (ours, theirs)
            )
            self.check(
                lines == wanted, f"metrics.jsonl: {kind} lines are {len(lines)}, not the other run's {len(wanted)}"
            )
        tests = [line for line in ours if line.get("split") == "test"]
        self.check(len(tests) == 1, f"metrics.jsonl has {len(tests)} test lines")

    def report(self) -> None:
        self.check(imread(self.run / "report.png").shape[1] == 1600, "report.png has another width")
        self.check((self.run / "report.html").read_text().endswith("</html>\n"), "report.html is cut short")

    def exported(self) -> None:
        """The export is whole and scores its own rows as it says."""
        self._whole(self.run / "export")

    def _whole(self, folder: Path) -> None:
        damage = manifest.damage(folder, manifest.read(folder))
        self.check(damage is None, str(damage))
        rows = json.loads((folder / "golden.json").read_text())
        with torch.no_grad():
            scores = torch.jit.load(str(folder / "model.pt")).eval()(*golden_inputs(rows))
        for task, values in rows["scores"].items():
            apart = (scores[task] - torch.tensor(values)).abs().max().item()
            self.check(apart <= rows["tolerance"], f"{folder}: scores differ from golden.json by {apart}")

    def publication(self) -> None:
        """The pointer names the night, its folder is whole, and it is the night's export."""
        pointer = publish.current(str(self.stage.published))
        self.check(pointer["version"] == self.stage.day, f"the pointer names {pointer['version']}")
        folder = self.stage.published / pointer["folder"]
        self._whole(folder)
        same = (folder / "model.pt").read_bytes() == (self.run / "export" / "model.pt").read_bytes()
        self.check(same, "what is published is not the night's export")

    def leftovers(self) -> None:
        """No process lives, and nothing half-made lies about."""
        self.failures += left(self.stage.folder)
