"""What a request costs by each file of an export: model.pt (TorchScript), model.pt2 (AOTInductor), model.onnx.

    livetrain train configs/recipes/din_ml1m.yaml name=din
    livetrain export runs/din --compile --onnx
    python benchmarks/compiled.py runs/din

Each call ranks 500 held-out rows as candidates of one user, whose sequences come once; another user each time. All
files take turns, call by call, in one process on one thread. What is measured is the thread's processor time, so that
other programs on the machine count little.
"""

import argparse
import datetime
import json
import os
import time
from pathlib import Path

from livetrain.trainers.runtime.process import set_up

set_up()  # as livetrain does, before PyTorch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402

from livetrain.modules.serving import flat  # noqa: E402
from livetrain.modules.serving.compiled import Compiled  # noqa: E402
from livetrain.modules.serving.loading import load  # noqa: E402
from livetrain.trainers.export.compiled import Onnx  # noqa: E402
from livetrain.trainers.export.rows import golden_inputs, held_out_rows, one_user  # noqa: E402
from livetrain.trainers.runtime import run_folder  # noqa: E402

CANDIDATES, USERS = 500, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run that was exported with --compile, or --onnx, or both")
    parser.add_argument("--rounds", type=int, default=10, help="passes over 30 users")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe, folder = run_folder.recipe_of(given.run), given.run / "export"
    signature = json.loads((folder / "signature.json").read_text(encoding="utf-8"))
    about, loads = signature["flat"]["model"], {}
    start = time.perf_counter()
    ranks = {"model.pt": load(folder)}
    loads["model.pt"] = time.perf_counter() - start
    for name, made in (("model.pt2", "compiled"), ("model.onnx", "onnx")):
        if made in signature:
            start, path = time.perf_counter(), folder / name
            ranks[name] = Compiled(path, about, ranks["model.pt"]) if made == "compiled" else Onnx(path, about)
            loads[name] = time.perf_counter() - start
    rows = held_out_rows(recipe, CANDIDATES)
    inputs = golden_inputs(rows)
    places = np.linspace(0, rows["rows"] - 1, USERS).astype(int).tolist()
    requests = [one_user(inputs, flat.once(recipe), place)[0] for place in places]
    seconds: dict[str, list[float]] = {name: [] for name in ranks}
    apart = dict.fromkeys(ranks, 0.0)
    with torch.inference_mode():
        for request in requests * (given.rounds + 1):
            wanted: dict[str, torch.Tensor] = {}
            for name, each in ranks.items():
                start = time.thread_time()
                found = each.rank(*request)
                seconds[name].append(time.thread_time() - start)
                wanted = wanted or found
                apart[name] = max(apart[name], *(float((found[t] - wanted[t]).abs().max()) for t in wanted))
    print("| file | MB | loads in ms | first two calls ms | p50 ms | p99 ms | of model.pt | largest difference |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    base = np.median(seconds["model.pt"][USERS:])
    for name, values in seconds.items():
        p50, p99 = np.percentile(values[USERS:], [50, 99]) * 1e3  # the first pass warms up
        first = " and ".join(f"{value * 1e3:.1f}" for value in values[:2])
        size = sum(path.stat().st_size for path in folder.glob(f"{name}*")) / 1e6
        size -= (folder / "model.pt2").stat().st_size / 1e6 if name == "model.pt" and "model.pt2" in ranks else 0
        print(
            f"| {name} | {size:.2f} | {loads[name] * 1e3:.0f} | {first} | {p50:.2f} | {p99:.2f} "
            f"| {p50 / 1e3 / base:.2f} | {apart[name]:.1e} |"
        )
    print(f"\n{rows['rows']} candidates, {USERS * given.rounds} calls each, one thread; processor time;", end=" ")
    print(f"load {os.getloadavg()[0]:.1f}; torch {torch.__version__}; {datetime.date.today()}")
    if "compiled" in signature:
        about = signature["compiled"]
        print(f"model.pt2 compiled in {about['seconds']:.0f} s for {about['march']}")


if __name__ == "__main__":
    main()
