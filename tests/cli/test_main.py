import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import livetrain
from livetrain.cli import main as cli
from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe, load_recipe
from tests.trainers.data.checks.prepared import write

ROOT = Path(livetrain.__file__).parent
RECIPE = str(ROOT / "configs/recipes/din_ml1m.yaml")
DAYS = ("table", "kuailive", "kuairand")  # commands that prepare data on a cluster too


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line in this process; return (exit code, stdout, stderr)."""
    monkeypatch.delenv("LIVETRAIN_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["livetrain", *words])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def floor_below(monkeypatch):
    """Stand in for the modules that the commands call; `floor_below.calls` holds what they were asked."""
    calls = []

    def answer(name, value):
        def fake(*arguments, **options):
            calls.append((name, *arguments))
            if isinstance(value, BaseException):
                raise value
            return value

        return fake

    def stand_in(module: str, **answers) -> None:
        fakes = SimpleNamespace(**{name: answer(name, value) for name, value in answers.items()})
        package, _, leaf = module.rpartition(".")
        monkeypatch.setitem(sys.modules, module, fakes)
        monkeypatch.setattr(__import__(package, fromlist=["_"]), leaf, fakes, raising=False)

    stand_in("livetrain.trainers.observe.report.summary", summary_table="TABLE", table_lines=["LINE"])
    stand_in(
        "livetrain.cluster.launch", train={"name": "wide", "test.label.auc": 0.8}, evaluate={"valid.label.auc": 0.7}
    )
    return SimpleNamespace(calls=calls, stand_in=stand_in)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "wide"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "result.json").write_text('{"name": "wide", "test.label.auc": 0.8}')
    return folder


@pytest.mark.parametrize(
    "words",
    [
        *((), ("train",), ("evaluate",), ("export",), ("submit",), ("plan",), ("doctor",)),
        *(
            ("data", *name)
            for name in ((), ("ml-1m",), ("kuailive",), ("kuailive-m3",), ("kuairand",), ("check",), ("next-item",))
        ),
    ],
)
def test_help_shows_an_example(call, words):
    code, out, _ = call(*words, "--help")
    assert code == 0
    assert words == ("data",) or "livetrain " in out.split("Usage:")[1].split("\n", 1)[1]


def test_help_documents_the_exit_codes(call):
    _, out, _ = call("--help")
    assert all(
        words in " ".join(out.split())
        for words in ("0 done", "1 the run failed", "2 bad input", "3 nightly, index: what is new", "130 interrupt")
    )


def test_the_version_is_the_packages(call):
    assert call("--version")[:2] == (0, f"livetrain {importlib.metadata.version('livetrain')}\n")


def test_the_front_door_imports_nothing_heavy():
    heavy = "{'torch', 'torchrec', 'ray', 'numpy', 'pyarrow', 'pydantic', 'matplotlib'}"
    front = "import sys, livetrain.api, livetrain.cli.main"
    code = f"{front}; found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_train_hands_the_settled_recipe_down(call, floor_below, run):
    code, out, _ = call("train", RECIPE, "train.epochs=2", "tables.movie.dim=32", "--runs", str(run.parent))
    assert code == 0
    (name, recipe, runs), table, lines = floor_below.calls
    assert (name, recipe.train.epochs, recipe.tables["movie"].dim, runs) == ("train", 2, 32, run.parent)
    assert table[1:] == lines[1:] == ({"name": "wide", "test.label.auc": 0.8},)
    assert out == f"TABLE\nLINE\neverything is in {run}; plots: report.png and report.html\n"


def test_evaluate_hands_its_choices_down(call, floor_below, run):
    (run / "config.yaml").write_text(dump_recipe(load_recipe(RECIPE)))
    assert call("evaluate", str(run))[0] == 0
    assert call("evaluate", str(run), "--split", "valid", "--checkpoint", "last")[0] == 0
    asked = [rest for name, *rest in floor_below.calls if name == "evaluate"]
    assert asked == [[run, "test", "best"], [run, "valid", "last"]]


def test_export_says_where_the_file_is_and_how_close(call, floor_below, run):
    floor_below.stand_in(
        "livetrain.trainers.export.export", export={"its": "signature"}, more=[], lines=["so close", "so large"]
    )
    floor_below.stand_in("livetrain.trainers.observe.weights_and_biases", send_export=None)
    code, out, _ = call("export", str(run))
    assert code == 0
    assert out == f"{run / 'export'}: model.pt, signature.json, golden.json\nso close\nso large\n"
    asked = [call for call in floor_below.calls if call[0] != "send_export"]
    signature = {"its": "signature"}
    assert asked == [("export", run, "best", run / "export", None), ("more", signature), ("lines", signature)]


def test_export_hands_quantisation_and_candidates_down(call, floor_below, run, tmp_path):
    floor_below.stand_in("livetrain.trainers.export.export", export={}, more=[], lines=[])
    floor_below.stand_in("livetrain.trainers.observe.weights_and_biases", send_export=None)
    floor_below.stand_in("livetrain.trainers.export.latency", compare=["measured"], latency_table="TABLE")
    words = ("--quantize", "int8", "--bench", "--candidate", "movie", "--candidate", "hour", "--out", str(tmp_path))
    code, out, _ = call("export", str(run), *words)
    assert code == 0
    assert out.endswith("TABLE\n")
    assert [call for call in floor_below.calls if call[0] != "send_export"] == [
        ("export", run, "best", tmp_path, "int8"),
        ("more", {}),
        ("lines", {}),
        ("compare", run, "best", ["movie", "hour"]),
        ("latency_table", ["measured"]),
    ]
    assert call("export", str(run), "--quantize", "int4")[0] == 2


def test_data_hands_the_protocol_down(call, floor_below, tmp_path):
    floor_below.stand_in(
        "livetrain.trainers.data.sources.movielens", prepare={"splits": {"train": {"rows": 1200}, "test": {"rows": 7}}}
    )
    code, out, _ = call("data", "ml-1m", "--protocol", "dcnv2", "--out", str(tmp_path))
    assert code == 0
    assert out == f"{tmp_path}: train 1,200, test 7 rows\n"
    assert floor_below.calls == [("prepare", "dcnv2", tmp_path, None)]


def test_data_check_shows_all_and_exits_by_the_worst_verdict(call, tmp_path):
    code, out, err = call("data", "check", str(write(tmp_path / "honest")))
    assert (code, err.splitlines()[0]) == (0, "6,000 rows in 4 days")
    assert all(word in out for word in ("columns", "findings", "live_streamer", "leakage"))
    assert out.endswith(f"plots: {tmp_path / 'honest' / 'check.png'}\n")
    leak = write(tmp_path / "leak", spoil=lambda number, rows: rows.update(planted=rows["click"].copy()))
    code, out, _ = call("data", "check", str(leak), "--out", str(tmp_path / "leak.png"))
    assert (code, "planted" in out, (tmp_path / "leak.png").is_file()) == (2, True, True)
    assert not (leak / "check.png").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("data", "check", "nowhere"), "nowhere: there is no such folder"),
        (("train", RECIPE, "train.epoch=2"), "override 'train.epoch=2': unknown key train.epoch"),
        (("train", RECIPE[:-5] + ".yml"), "there is no such recipe file (did you mean"),
        (("evaluate", "runs/nothing"), "runs/nothing: this folder holds no run"),
        (("export", "runs/nothing"), "runs/nothing: this folder holds no run"),
    ],
)
def test_bad_input_is_one_sentence_on_stderr_and_exits_with_2(call, floor_below, words, sentence):
    code, out, err = call(*words)
    assert code == 2
    assert sentence in err
    assert (out, err.count("\n")) == ("", 1)
    assert floor_below.calls == []


@pytest.mark.parametrize("words", [("--train.epochs=2",), ("--train.epochs", "2")])
def test_a_change_of_the_recipe_with_dashes_is_answered_with_its_form(call, words):
    code, _, err = call("train", RECIPE, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "'--train.epochs' is no option" in err
    assert err.endswith("KEY=VALUE without dashes: train.epochs=VALUE\n")


def test_every_command_takes_a_cluster_by_address_and_no_default_stands_in_parentheses(call):
    for words in (
        *(("train",), ("evaluate",), ("export",), ("predict",), ("submit",), ("nightly",), ("doctor",), ("init",)),
        *(("tune", "search"), ("tune", "best"), ("data", "table"), ("data", "kuailive"), ("data", "kuairand")),
    ):
        _, out, _ = call(*words, "--help")
        assert "default: (" not in out
        assert "--ray" not in out
        assert ("--address" in out) == (words[-1] in ("predict", "submit", "nightly", "doctor", *DAYS)), words


@pytest.mark.parametrize(
    "words", [("trian",), ("train",), ("evaluate", "runs/x", "--split", "tset"), ("data", "ml-1m", "--out", "x")]
)
def test_wrong_arguments_exit_with_2(call, words):
    code, _, err = call(*words)
    assert code == 2
    assert err


def test_a_run_that_is_almost_named_is_named(call, floor_below, run):
    assert f"did you mean '{run}'?" in call("evaluate", str(run) + "r")[2]


def test_bad_input_from_below_exits_with_2_and_keeps_secrets(call, floor_below):
    error = BadInput("s3://KEY:secret@bucket/train: there is no such folder")
    floor_below.stand_in("livetrain.cluster.launch", train=error)
    code, _, err = call("train", RECIPE)
    assert (code, err) == (2, "s3://bucket/train: there is no such folder\n")


def test_a_failed_run_exits_with_1_and_names_the_log(call, floor_below, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    floor_below.stand_in("livetrain.cluster.launch", train=RuntimeError("a worker died\nand more"))
    code, _, err = call("train", RECIPE)
    assert code == 1
    first, second = err.splitlines()
    assert first == "failed: RuntimeError: a worker died"
    log = Path(second.removeprefix("the traceback is in "))
    assert log.parent == tmp_path
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("verbose", ["option", "environment"])
def test_a_failed_run_shows_its_traceback_when_asked(call, floor_below, monkeypatch, verbose):
    floor_below.stand_in("livetrain.cluster.launch", train=RuntimeError("a worker died"))
    monkeypatch.setenv("LIVETRAIN_DEBUG", "1" if verbose == "environment" else "0")
    code, _, err = call(*(["--verbose"] if verbose == "option" else []), "train", RECIPE)
    assert code == 1
    assert "Traceback" in err


def test_an_interrupted_run_exits_with_130(call, floor_below):
    floor_below.stand_in("livetrain.cluster.launch", train=KeyboardInterrupt())
    assert call("train", RECIPE)[0] == 130


def test_schema_needs_no_recipe_and_knows_the_models(call):
    code, out, _ = call("train", "--schema")
    assert code == 0
    definitions = json.loads(out)["$defs"]
    options = definitions["Recipe"]["properties"]["model"]["oneOf"]
    kinds = [definitions[option["$ref"].rsplit("/", 1)[1]] for option in options]
    assert {"din", "dnn", "lr"} <= {name for kind in kinds for name in kind["properties"]["kind"]["enum"]}


@pytest.mark.parametrize("path", sorted((ROOT / "configs/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid_and_fit_on_a_screen(path):
    from livetrain.modules.fitted import fitted
    from livetrain.modules.model import Model

    recipe = load_recipe(path)
    assert fitted(recipe) or Model(recipe, device="meta", tables_device="meta")
    assert len(path.read_text().splitlines()) <= 80  # forty features, a line each


def test_a_world_is_simulated_and_its_oracle_printed(call, tmp_path):
    code, out, _ = call("data", "simulate", "--users", "60", "--days", "1", "--out", str(tmp_path / "world"))
    assert code == 0
    assert "live exposures" in out
    *_, following = out.splitlines()
    assert following.split()[:4] == ["livetrain", "data", "kuailive", "--raw"]
    code, said, _ = call(*following.split()[1:])
    assert (code, (tmp_path / "world-samples/dataset.json").exists()) == (0, True), said
    code, out, _ = call("data", "oracle", str(tmp_path / "world"), "--days", "2025-05-25")
    assert code == 0
    assert all(word in out for word in ("click", "effective_view", "gift", "UAUC"))


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        (("simulate", "--users", "lots", "--days", "1", "--out", "x"), "20k"),
        (("simulate", "--users", "60", "--days", "0", "--out", "x"), "1 to 365"),
        (("simulate", "--users", "60", "--days", "1", "--conflict", "2", "--out", "x"), "0 to 1"),
        (("oracle", "x"), "livetrain data simulate"),
    ],
)
def test_a_wrong_world_is_refused_in_one_sentence(call, monkeypatch, tmp_path, words, mend):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("data", *words)
    assert code == 2
    assert mend in " ".join(err.split())
    assert not list(tmp_path.iterdir())


def test_tune_takes_a_recipe_where_its_other_commands_take_their_names(call, tmp_path):
    code, out, _ = call("tune", "--help")
    assert code == 0
    assert "best" in out
    code, out, _ = call("tune", "search", "--help")
    assert code == 0
    assert all(option in out for option in ("--space", "--samples", "--metric", "--resume"))
    for words, sentence in (
        ((RECIPE,), "a sweep needs RECIPE and --space, or --resume DIR"),
        (("--samples", "3"), "a sweep needs RECIPE and --space, or --resume DIR"),
        ((RECIPE, "--resume", str(tmp_path)), "leave all other arguments out"),
        (("--resume", str(tmp_path), "--samples", "3"), "leave all other arguments out"),
        (("--resume", str(tmp_path)), "this folder holds no sweep"),
        ((RECIPE, "--space", str(tmp_path / "no.yaml")), "there is no such space file"),
        ((RECIPE, "train.epoch=1", "--space", "x.yaml"), "unknown key train.epoch"),
        ((RECIPE, "--space", "x.yaml", "--runs", "here", "--out", "there"), "leave one out"),
        (("--resume", str(tmp_path), "--runs", "here"), "leave all other arguments out"),
        (("best", str(tmp_path), "--out", "x.yaml"), "this folder holds no sweep"),
    ):
        code, _, err = call("tune", *words)
        assert (code, sentence in " ".join(err.split())) == (2, True), err


def test_tune_best_writes_a_recipe(call, tmp_path):
    from livetrain.cluster.sweep.results import Sweep
    from livetrain.cluster.sweep.trials import Settings, Trial
    from livetrain.configs.space import parse_space

    space = {"optimizers.dense.lr": {"uniform": [0.001, 0.1]}}
    sweep = Sweep(tmp_path / "sweep", load_recipe(RECIPE), parse_space(space), Settings(metrics=["valid/auc"]))
    sweep.create()
    rates = (0.01, 0.02)
    sweep.trials = [Trial(n, {"optimizers.dense.lr": r}, "finished", [0.7 + r]) for n, r in enumerate(rates)]
    sweep.save()
    out = tmp_path / "best.yaml"
    code, said, _ = call("tune", "best", str(tmp_path / "sweep"), "--out", str(out))
    assert code == 0
    assert "Trial 1 of 2" in said
    assert load_recipe(out).optimizers.dense.lr == 0.02
    assert call("tune", "best", str(tmp_path / "sweep"), "--out", str(out), "--trial", "0")[0] == 0
    assert load_recipe(out).optimizers.dense.lr == 0.01
    code, _, err = call("tune", "best", str(tmp_path / "sweep"), "--out", str(tmp_path / "no" / "best.yaml"))
    assert code == 2
    assert "choose another file with --out" in " ".join(err.split())


def test_runs_are_listed_and_compared(call, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("runs")
    assert (code, "wide" in out, "finished" in out) == (0, True, True)
    assert "wide" in call("runs", str(run))[1]
    (tmp_path / "empty").mkdir()
    assert call("runs", "empty")[1] == "empty: no runs are here yet; livetrain train RECIPE --runs empty makes one\n"
    assert call("runs", "rnus")[0] == 2
    other = shutil.copytree(run, run.parent / "other")
    code, out, _ = call("compare", str(run), str(other), "--out", "seen.png")
    assert (code, out.splitlines()[-1]) == (0, "curves: seen.png")
    assert (tmp_path / "seen.png").stat().st_size > 1000
    assert "the recipes are the same" in out
    assert call("compare", str(run))[::2] == (2, "compare: name two runs or more, each once\n")
    code, _, err = call("compare", str(run), str(other), "--split", "test")
    assert (code, "no committed checkpoint" in err) == (2, True)


def test_samples_are_not_made_on_a_store(call, tmp_path, monkeypatch):
    """Where the URI as a path would make a folder that is called `s3:`."""
    monkeypatch.chdir(tmp_path)
    code, _, complaint = call("data", "table", "shop_data.yaml", "--out", "s3://me:hunter2@bucket/shop")
    assert code == 2
    assert "'--out': s3://bucket/shop is no folder; make the samples in one, and copy it there;" in complaint
    assert list(tmp_path.iterdir()) == []
