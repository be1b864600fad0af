"""`livetrain export --triton`: Triton's own configuration and layout, and its Python backend's model, executed."""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import torch

from livetrain import api
from livetrain.cli.main import main
from livetrain.configs.errors import BadInput
from livetrain.trainers.export import triton
from livetrain.trainers.export.rows import golden_inputs, one_user


class _Given:
    """A tensor of a request, as triton_python_backend_utils has it, but for as_numpy, see triton_model."""

    def __init__(self, name, values):
        self._name, self._values = name, values

    def name(self):
        return self._name

    def to_dlpack(self):
        return torch.to_dlpack(torch.from_numpy(self._values))


class _Tensor(_Given):
    """Of an answer."""

    @classmethod
    def from_dlpack(cls, name, capsule):
        return cls(name, torch.from_dlpack(capsule).numpy())

    def as_numpy(self):
        return self._values


class _Request:
    def __init__(self, tensors, outputs=("click",), parameters=None):
        self._tensors = [_Given(name, values) for name, values in tensors.items()]
        self._outputs, self._parameters = list(outputs), {} if parameters is None else parameters

    def inputs(self):
        return self._tensors

    def parameters(self):
        return json.dumps(self._parameters)

    def requested_output_names(self):
        return self._outputs


class _Response:
    def __init__(self, output_tensors, error=None):
        self._tensors, self._error = output_tensors, error

    def output_tensors(self):
        return self._tensors

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


class _TritonError(Exception):
    INVALID_ARG, INTERNAL = 1, 2

    def message(self):
        return self.args[0]

    def code(self):
        return self.args[1]


def _by_name(request, name):
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


@pytest.fixture
def backend(monkeypatch):
    stub = types.ModuleType("triton_python_backend_utils")
    stub.Tensor, stub.InferenceResponse, stub.TritonError = _Tensor, _Response, _TritonError
    stub.get_input_tensor_by_name = _by_name
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)


@pytest.fixture(scope="module")
def repository(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    signature = api.export(small_run, folder / "export", triton=folder / "models")
    return folder, signature


def _config(folder):
    why = "needs tritonclient[grpc] for Triton's own schema"
    model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=why)
    text_format = pytest.importorskip("google.protobuf.text_format", reason=why)
    return text_format.Parse((folder / triton.CONFIG).read_text(), model_config_pb2.ModelConfig()), model_config_pb2


def test_the_configuration_is_tritons_and_says_what_the_signature_says(repository):
    folder, signature = repository
    config, schema = _config(folder / "models/small")
    assert (config.name, config.backend, config.max_batch_size) == ("small", "python", 0)
    inputs = {each.name: (schema.DataType.Name(each.data_type), [*each.dims], each.optional) for each in config.input}
    wanted = {}
    for name, about in signature["features"].items():
        if about["dtype"] == "int64":
            wanted[f"ids.{name}"] = ("TYPE_INT64", [-1], False)
            wanted[f"lengths.{name}"] = ("TYPE_INT64", [-1], about["type"] == "id")
        else:
            wanted[f"dense.{name}"] = ("TYPE_FP32", [-1], False)
    assert inputs == wanted
    outputs = {each.name: (schema.DataType.Name(each.data_type), [*each.dims]) for each in config.output}
    assert outputs == {task: ("TYPE_FP32", [-1]) for task in signature["tasks"]}
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_CPU


def test_the_layout_is_tritons_and_the_next_export_is_the_next_version(repository, small_run):
    folder, _ = repository
    model = folder / "models/small"
    assert {path.name for path in model.iterdir()} == {"config.pbtxt", "1"}
    assert {path.name for path in (model / "1").iterdir()} == {"model.py", "model.pt", "signature.json", "golden.json"}
    second = triton.write(folder / "export", folder / "models", "small")
    assert second == model / "2"
    (model / "2/model.py").unlink()
    for path in second.iterdir():
        path.unlink()
    second.rmdir()


def _model(folder, version="1"):
    spec = importlib.util.spec_from_file_location("model", folder / version / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    names = [
        {"name": line.split('"')[1]} for line in (folder / triton.CONFIG).read_text().splitlines() if " name:" in line
    ]
    inputs = [each for each in names if each["name"].split(".")[0] in ("ids", "lengths", "dense")]
    config = json.dumps({"name": "small", "input": inputs})
    model.initialize({"model_config": config, "model_repository": str(folder), "model_version": version})
    return model


def _named(inputs):
    parts = zip(("ids", "lengths", "dense"), inputs, strict=True)
    return {f"{part}.{name}": values.numpy() for part, found in parts for name, values in found.items()}


def test_the_backends_model_gives_the_golden_rows_scores(repository, backend):
    folder, _ = repository
    golden = json.loads((folder / "export/golden.json").read_text())
    model = _model(folder / "models/small")
    rows = golden_inputs(golden)
    once, repeated = one_user(rows, ["user", "history", "rating"], 3)
    sent = [
        _Request(_named(rows), parameters={"rows": True}),
        _Request(_named(once)),
        _Request(_named(repeated), (), parameters={"rows": True}),
    ]
    answers = [answer.output_tensors()[0] for answer in model.execute(sent)]
    assert [answer.name() for answer in answers] == ["click"] * 3
    assert answers[0].as_numpy().tobytes() == np.array(golden["scores"]["click"], np.float32).tobytes()
    np.testing.assert_allclose(answers[1].as_numpy(), answers[2].as_numpy(), rtol=1e-5)


def test_a_wrong_request_has_an_error_of_its_own(repository, backend):
    folder, _ = repository
    rows = _named(golden_inputs(json.loads((folder / "export/golden.json").read_text())))
    lacks = {name: values for name, values in rows.items() if name != "ids.movie"}
    wrong, missing, right = _model(folder / "models/small").execute(
        [
            _Request({**rows, "lengths.history": rows["lengths.history"] + 1}, parameters={"rows": True}),
            _Request(lacks, parameters={"rows": True}),
            _Request(rows, parameters={"rows": True}),
        ]
    )
    assert wrong.error().message().startswith("lengths: those of 'history' do not add up")
    assert "'movie' is missing" in missing.error().message()
    assert wrong.error().code() == missing.error().code() == _TritonError.INVALID_ARG
    assert not right.has_error()


def test_a_model_that_scores_otherwise_is_not_served(repository, backend, tmp_path):
    folder, _ = repository
    place = tmp_path / "small"
    (place / "1").mkdir(parents=True)
    for path in [*(folder / "models/small").glob("*.pbtxt"), *(folder / "models/small/1").iterdir()]:
        target = place / path.name if path.suffix == ".pbtxt" else place / "1" / path.name
        target.write_bytes(path.read_bytes())
    golden = json.loads((place / "1/golden.json").read_text())
    golden["scores"]["click"][0] += 0.1
    (place / "1/golden.json").write_text(json.dumps(golden))
    with pytest.raises(RuntimeError, match="golden rows"):
        _model(place)


def test_mapped_tables_and_wide_features_are_declared_and_found(tmp_path, backend):
    from livetrain.cluster import launch
    from tests.serve import vectors

    recipe = vectors.recipe(vectors.data(tmp_path / "data")).model_dump(mode="json", exclude_unset=True)
    recipe["export"] |= {"tables": "mapped"}
    launch.train(type(vectors.recipe(tmp_path)).model_validate(recipe), tmp_path / "runs")
    api.export(tmp_path / "runs/small", triton=tmp_path / "models")
    config, _ = _config(tmp_path / "models/small")
    dims = {each.name: [*each.dims] for each in config.input}
    assert (dims["dense.cover"], dims["dense.tags"]) == ([-1, 3], [-1])
    golden = json.loads((tmp_path / "runs/small/export/golden.json").read_text())
    (answer,) = _model(tmp_path / "models/small").execute(
        [_Request(_named(golden_inputs(golden)), parameters={"rows": True})]
    )
    assert answer.output_tensors()[0].as_numpy().tolist() == np.array(golden["scores"]["click"], np.float32).tolist()


def test_the_command_says_where_the_model_is_and_refuses_another_models_place(home, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["livetrain", "export", "runs/small", "--out", "out", "--triton", "models"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "models/small: the newest version" in capsys.readouterr().out
    path = home / "models/small/config.pbtxt"
    path.write_text(path.read_text() + "# mine\n")
    with pytest.raises(BadInput, match="another model"):
        triton.write(home / "out", home / "models", "small")
    (tmp_path / "signature.json").write_text('{"top": ""}')
    with pytest.raises(BadInput, match="finds items"):
        triton.write(tmp_path, tmp_path, "small")
