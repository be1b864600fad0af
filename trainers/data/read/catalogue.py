"""Items on disk, read as a split whose rows have an item and nothing else."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.columns import IdKind, settled, wanted_columns
from livetrain.trainers.data.read.distant import Ahead
from livetrain.trainers.data.read.files import files_below, open_filesystem, shown
from livetrain.trainers.data.read.source import RowGroup, Source, looked

CATALOGUE = "catalogue"  # in the place of a split's name


@dataclass
class Catalogue(Source):
    """The rows of evaluate.catalogue. A column that is no feature of the item is null in each of them."""

    absent: pa.Schema = field(default_factory=lambda: pa.schema([]))

    @classmethod
    def of_recipe(cls, recipe: Recipe, features: list[str]) -> "Catalogue":
        """Open the recipe's catalogue.

        Args:
            recipe: the run.
            features: those of the item.

        Raises:
            BadInput: there is none, it is empty, or it lacks a feature of the item or has one of another type.
        """
        filesystem, root = open_filesystem(recipe.evaluate.catalogue or "", "evaluate.catalogue")
        paths = files_below(filesystem, root, "evaluate.catalogue")
        every, item = wanted_columns(recipe), [f"features.{name}" for name in features]
        wanted = [
            (column, kind, f"evaluate.catalogue, {key}")
            for column, kind, key in every
            if ".".join(key.split(".")[:2]) in item
        ]
        catalogue = cls._of(shown(filesystem, root), filesystem, looked(filesystem, paths), wanted)
        if not catalogue.rows:
            raise BadInput(f"evaluate.catalogue: {catalogue.folder} has no rows; write the items to it")
        others = [part for part in every if part[0] not in catalogue.schema.names]
        catalogue.absent = settled({column: pa.null() for column, _, _ in others}, others)
        return catalogue

    def id_kinds(self, recipe: Recipe) -> dict[str, IdKind]:
        """Return what `Source.id_kinds` does of the item's features."""
        own = {name: f for name, f in recipe.features.items() if {*recipe.columns(name)} <= {*self.schema.names}}
        return super().id_kinds(recipe.model_copy(update={"features": own}))

    def read(self, group: RowGroup, columns: list[str]) -> pa.Table:
        """Return what `Source.read` does, with nulls in the columns that are not the item's."""
        return self._whole(super().read(group, self._own(columns)), columns)

    def ahead(self, columns: list[str]) -> contextlib.AbstractContextManager[Ahead | None]:
        """Return what `Source.ahead` does, for the item's columns."""
        return super().ahead(self._own(columns))

    def stream(
        self, groups: Sequence[RowGroup], columns: list[str], rows: int, ahead: Ahead | None = None
    ) -> Iterator[pa.Table]:
        """Yield what `Source.stream` does, with nulls in the columns that are not the item's."""
        for table in super().stream(groups, self._own(columns), rows, ahead):
            yield self._whole(table, columns)

    def _own(self, columns: list[str]) -> list[str]:
        return [name for name in columns if name in self.schema.names]

    def _whole(self, own: pa.Table, columns: list[str]) -> pa.Table:
        """Return rows with the columns that are not the item's besides."""
        for name in columns:
            if name not in self.schema.names:
                missing = self.absent.field(name)
                own = own.append_column(missing, pa.nulls(len(own), missing.type))
        return own.select(columns)
