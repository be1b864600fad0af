"""Rows/s of `livetrain predict` against those of training, by turns, on the same cores and rows.

    livetrain train configs/recipes/din_ml1m.yaml name=din
    python benchmarks/predict.py runs/din

A round trains on the run's training split for `--steps` steps (Parquet decoded, shuffled, hashed, both passes, as a run
does, without evaluations) and then predicts the same split, or of days the first one, files read and written included.
Start-up, which is the loading of the model, is in neither. Torch's threads are livetrain's own choice, or
OMP_NUM_THREADS.
"""

import argparse
import datetime
import os
import statistics
import tempfile
import time
from pathlib import Path

from livetrain.trainers.runtime.process import set_up, threads

set_up()

import torch  # noqa: E402

from livetrain.trainers.data.read.source import Source  # noqa: E402
from livetrain.trainers.data.read.statistics import scan  # noqa: E402
from livetrain.trainers.export import prediction, prediction_files  # noqa: E402
from livetrain.trainers.runtime import ranks, run_folder  # noqa: E402
from livetrain.trainers.runtime.versions import versions  # noqa: E402
from livetrain.trainers.train.loop import Job, Trainer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="training steps per round")
    given = parser.parse_args()
    torch.set_num_threads(threads())
    recipe = run_folder.recipe_of(given.run)
    part = f"date={recipe.data.days.train.split('..')[0]}" if recipe.data.days else "train"
    data = f"{recipe.data.path}/{part}"
    files = prediction_files.find(data, "data.path").paths
    trained, predicted = [], []
    with ranks.alone(cuda=False), tempfile.TemporaryDirectory() as folder:
        source = Source.open(recipe, "train")
        job = Job(recipe, Path(folder) / "unused", {"train": source}, scan(source, recipe))
        trainer = Trainer(job, torch.device("cpu"))
        trainer.sharded.module.train()
        prediction.predictor(prediction.weights_of(given.run))  # loaded before the clock starts
        for round_ in range(given.rounds):
            batches = trainer.reader.batches(round_)
            start = time.perf_counter()
            for step in range(min(given.steps, trainer.reader.steps)):
                trainer.sharded.set_rates(1.0)
                ranks.seed_step(recipe.train.seed, step)
                trainer.sharded.pipeline.progress(batches)
            trained.append((step + 1) * recipe.data.batch_size / (time.perf_counter() - start))
            batches.close()
            start = time.perf_counter()
            found = prediction_files.predict(given.run, data, Path(folder) / f"out-{round_}", keep=[])
            predicted.append(found["rows"] / (time.perf_counter() - start))
    print("| | rows/s, median | fastest |")
    print("| --- | --- | --- |")
    for name, rates in (("training", trained), ("predict", predicted)):
        print(f"| {name} | {statistics.median(rates):,.0f} | {max(rates):,.0f} |")
    ratios = [p / t for p, t in zip(predicted, trained, strict=True)]
    print(f"| ratio | {statistics.median(ratios):.2f} | |")
    made = versions()
    print(f"\n{given.rounds} rounds by turns, {len(files)} files, {threads()} threads;", end=" ")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores;", end=" ")
    print(f"python {made['python']}, torch {made['torch']}; {datetime.date.today()}")


if __name__ == "__main__":
    main()
