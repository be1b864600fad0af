"""The spec of `livetrain blend`: which channels bring candidates, how many each may bring, and what each counts.

requests: runs/dssm_kuairand
channels:
  dssm: {run: runs/dssm_kuairand}
  fresh: {run: runs/latest_kuairand, quota: 50, reserve: 5}
  by_tab: {published: models/popular, when: user_count = 0}
  music: {candidates: lists/music.parquet, on: user}
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from livetrain.configs.errors import BadInput
from livetrain.configs.schema.section import Section
from livetrain.configs.values import Count, Length, Name, RunName, Seed, SliceName, Sql, Text, real, whole

_DEEPEST = 2**16 - 1  # the last rank that trainers.recall.merging keeps
Weight = Annotated[float, real(0, 1e3)]
Depth = Annotated[int, *whole(1, _DEEPEST)]


class Channel(Section):
    """What brings candidates, the best first: a run, a published model, or a file of lists."""

    run: Text | None = Field(None, description="folder of a run that finds items")
    published: Text | None = Field(None, description="folder of published versions of one")
    candidates: Text | None = Field(None, description="Parquet, a file or a folder, with a list of items per row")
    on: Text | None = Field(None, description="of candidates: the column that a request has in common with its row")
    column: Text = Field("candidates", description="of candidates: the column with the lists, the best items first")
    quota: Depth | None = Field(None, description="items of a request that it brings at most; by default the size")
    weight: Weight = Field(
        1.0, description="what its items count: weight / (60 + rank); of 0 it brings its reserve and nothing else"
    )
    reserve: Annotated[int, *whole(0, _DEEPEST)] = Field(
        0, description="of its best items so many come before all others: a path for what no other channel knows yet"
    )
    when: Sql | None = Field(
        None, description="condition over the request's columns: of other requests it brings nothing"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Channel":
        given = [name for name in ("run", "published", "candidates") if getattr(self, name) is not None]
        if len(given) != 1:
            raise BadInput(f"run, published, candidates: a channel is one of them, and here are {len(given)}")
        if (self.on is None) == (self.candidates is not None):
            raise BadInput(
                "on: candidates need the column that tells requests apart, such as user, and no other has it"
            )
        if self.candidates is None and self.column != "candidates":
            raise BadInput("column: it is that of the lists of candidates, and here are none; leave it out")
        if self.quota is not None and self.reserve > self.quota:
            raise BadInput(f"reserve: {self.reserve} are more than the quota of {self.quota}")
        return self


class Search(Section):
    """Weights that are searched, on the validation split, by Optuna."""

    trials: Count = Field(100, description="settings that are tried, the spec's own among them")
    at: Length = Field(100, description="the share of clicked items among so many candidates is what counts")
    seed: Seed = 1


class BlendSpec(Section):
    """Channels of candidates, and on whose requests they are measured."""

    name: RunName = "blend"
    requests: Text = Field(
        description="folder of the run whose valid and test rows, catalogue, seen items and slices count"
    )
    runs: Text = Field("runs", description="folder of run folders, where the runs of published models lie")
    channels: dict[Name, Channel] = Field(min_length=1, max_length=64)
    size: Depth = Field(500, description="candidates of a request, the most that a pre-rank takes")
    slices: Annotated[dict[SliceName, Text], Field(max_length=32)] = Field(
        {}, description="conditions over columns whose requests get figures of their own, besides evaluate.slices"
    )
    search: Search | None = None

    @model_validator(mode="after")
    def _fits(self) -> "BlendSpec":
        for name, channel in self.channels.items():
            most = max(channel.reserve, channel.quota or 0)
            if most > self.size:
                raise BadInput(f"channels.{name}: {most} items are more than the size of {self.size}")
        if not any(channel.weight for channel in self.channels.values()):
            raise BadInput(
                "channels: every weight is 0, so no item counts more than another; give one a weight above 0"
            )
        if (reserved := sum(channel.reserve for channel in self.channels.values())) > self.size:
            raise BadInput(
                f"channels: their reserves are {reserved} items together, more than the size of {self.size}; lower them"
            )
        if self.search is not None and self.search.at > self.size:
            raise BadInput(
                f"search.at: {self.search.at} candidates are more than the size of {self.size}; ask for at most so many"
            )
        return self


def blend_json_schema() -> dict[str, Any]:
    """Return the JSON schema of a blend's spec, from which editors complete and check keys."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | BlendSpec.model_json_schema()
