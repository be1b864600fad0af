"""What a run writes for others: the exported file, and Weights & Biases."""

from typing import Annotated, Literal

from pydantic import Field

from livetrain.configs.schema.section import Section
from livetrain.configs.values import FeatureName, Share, Text, whole

Quantization = Literal["none", "float16", "int8"]


class Export(Section):
    after_training: bool = Field(
        True,
        description="whether a run ends with its export; a night exports if it publishes, a sweep's trial never",
    )
    quantize: Quantization = Field("none", description="how the file stores tables; the dense part stays float32")
    tables: Literal["auto", "inside", "mapped"] = Field(
        "auto",
        description="where they lie: inside the file, or in files beside it, which whoever scores maps; auto maps "
        "those that take more than 4 GiB in all",
    )
    candidate: list[FeatureName] | None = Field(
        None,
        min_length=1,
        description="the features that each candidate has of its own, for model.pt2 and model.onnx, whose rank takes "
        "one row of all others; by default it takes one row of the sequences alone",
    )
    compiled: bool = Field(
        False, description="whether an export also has model.pt2: the model compiled for this kind of processor"
    )
    onnx: bool = Field(False, description="whether an export also has model.onnx, which ranks in ONNX Runtime")
    parity_rows: Annotated[int, *whole(1, 2**24)] = Field(
        4096, description="held-out rows on which file and model must agree"
    )
    golden_rows: Annotated[int, *whole(1, 2**20)] = Field(
        32, description="rows written to golden.json with their scores"
    )
    golden: Literal["synthetic", "rows"] = Field(
        "synthetic", description="which rows those are: drawn, without any user's data, or the held-out rows themselves"
    )
    tolerance: Share = Field(
        1e-5, description="largest difference of a prediction (relative above 1), tables as trained"
    )
    tolerance_float16: Share = Field(1e-3, description="the same for quantize: float16")
    tolerance_int8: Share = Field(1e-2, description="the same for quantize: int8")


class Wandb(Section):
    """Weights & Biases: what metrics.jsonl gets, the report and the exports go there too. The key is its own affair."""

    project: Text
    entity: Text | None = Field(None, description="user or team, by default the one logged in")
    mode: Literal["online", "offline"] = Field("online", description="offline: kept in the run folder for `wandb sync`")
    tags: list[Text] = []
    group: Text | None = Field(None, description="runs that belong together; a sweep sets its own name for its trials")
