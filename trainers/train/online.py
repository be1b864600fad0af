"""Ids that get rows while a model trains: to the ranks that own them, and their rows back (`assign: online`).

    a batch -> each id of a table once, with its lookups -> its owner, who counts, admits, evicts -> rows -> the batch

1. A table's ids are cut into shards, and each rank owns some: it alone has their keys (see modules.tables.owner).
2. Of every batch one exchange goes there and back for all such tables together: how many ids go where; the ids with
   their counts; how many rows changed hands on each owner and what became of ids; rows, and with them to every rank the
   rows that changed hands with their new ids. Four collectives in training, and three in an evaluation, which counts
   nothing and changes nothing.
3. It happens where a batch's ids become rows, and so one batch ahead: batch n + 1 is counted before step n is trained,
   and always after batch n. Owners know of batches alone, so nothing depends on how far steps have come.
4. Rows that batch n + 1 took over begin anew between the steps n and n + 1, weights and optimizer state: step n still
   moves them for whom they belonged to, and no lookup of step n + 1 sees that. It is as if every step did the four
   things one after the other: count, begin anew, look up, learn.
5. A checkpoint between two steps has rows begun anew for the batch that is counted already and says so (`ahead`): who
   goes on from it only looks that batch up.
6. All ranks are told what became of ids, so figures need no exchange of their own.

Rows are begun anew by whoever holds them, wherever the table's sharding puts them: a table's keys and its rows may lie
on different ranks.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec

from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model, initial_values, stored_name
from livetrain.modules.tables.admission import Told
from livetrain.modules.tables.hashing import IdHash
from livetrain.modules.tables.ids import IdMap
from livetrain.modules.tables.owner import TOLD, Owner, held
from livetrain.trainers.runtime import ranks

_ROWS = 1 << 16  # that begin anew at a time
Changed = dict[str, tuple[Tensor, Tensor]]  # rows of a table that have changed hands, and their ids now


class Anew:
    """Lets rows that this rank holds begin anew: weights by (seed, table, id), optimizer state at zero.

    Args:
        recipe: the run.
        tensors: live ones of all tables, by the names of their entries in a checkpoint: weights, and by weight the
            optimizer's.
    """

    def __init__(self, recipe: Recipe, weights: Mapping[str, Any], state: Mapping[str, Mapping[str, Any]]) -> None:
        self._begins = {name: initial_values(recipe, name) for name in recipe.tables}
        self._weights: dict[str, list[tuple[Tensor, int, int]]] = {}
        self._states: dict[str, list[tuple[Tensor, int, int]]] = {}
        for key, value in weights.items():
            if name := table_of(key):
                self._weights.setdefault(name, []).extend(pieces(value))
        for key, values in state.items():
            if name := table_of(key):
                for value in values.values():
                    self._states.setdefault(name, []).extend(pieces(value) if value.dim() else ())

    @torch.no_grad()
    def __call__(self, table: str, rows: Tensor, ids: Tensor) -> None:
        """Args: a table's rows (n,), each once, and whose they are now (n,)."""
        for some, whose in zip(rows.split(_ROWS), ids.split(_ROWS), strict=True):
            for piece, row, column in self._weights.get(table, ()):
                own, of = _within(some, whose, row, len(piece))
                columns = range(column, column + piece.size(1))
                piece[own.to(piece.device)] = self._begins[table].of_ids(of.to(piece.device), columns).to(piece)
            for piece, row, _ in self._states.get(table, ()):
                own, _ = _within(some, whose, row, len(piece))
                piece[own.to(piece.device)] = 0


def table_of(key: str) -> str:
    """Return the table whose weight has a key in a module's or an optimizer's state; "" of other keys."""
    *_, kind, name, last = ["", "", *stored_name(key).split(".")]
    return name if kind == "embeddings" and last == "weight" else ""


def pieces(value: Tensor | ShardedTensor) -> Iterator[tuple[Tensor, int, int]]:
    """Yield what this rank holds of a tensor by rows, with the first row and column of each piece."""
    if not isinstance(value, ShardedTensor):
        yield value, 0, 0
        return
    for shard in value.local_shards():
        row, *column = shard.metadata.shard_offsets
        yield shard.tensor, row, column[0] if column else 0


def _within(rows: Tensor, ids: Tensor, first: int, many: int) -> tuple[Tensor, Tensor]:
    """Return those of some rows that are among `many` from `first` on, counted from there, and their ids."""
    own = (rows >= first) & (rows < first + many)
    if bool(own.all()):
        return rows - first, ids
    return rows[own] - first, ids[own]


class Online:
    """All tables of a model whose ids get rows while it trains. Every call is collective, but `begin` and `settle`.

    Args:
        recipe: the run.
        model: its maps get this rank's part of the keys, and its ids go to their owners from now on.
        device: this rank's.

    Attributes:
        owners: by table, of this rank's part.
        told: what became of ids since this was emptied, by table.
    """

    def __init__(self, recipe: Recipe, model: Model, device: torch.device) -> None:
        rank, world = ranks.rank(), ranks.world()
        self.owners = {
            name: Owner(recipe.tables[name], map, rank, world, device)
            for name, map in model.maps.items()
            if recipe.tables[name].assign == "online" and map.buckets
        }
        for each in model.modules():
            if isinstance(each, IdHash) and self.owners:
                each.send_to(self, self.owners)
        self.device = device
        self.told = {name: Told() for name in self.owners}
        self._module: nn.Module = model
        self._at_once, self._due = False, False
        self._pending: deque[Changed] = deque()

    def join(
        self, module: nn.Module, anew: Callable[[], Anew], mark: Callable[[str, Tensor], None], at_once: bool
    ) -> None:
        """Be part of a training.

        Args:
            module: in training mode or not.
            anew: makes the `Anew` of its tables, once there are steps.
            mark: told of rows that change: the table, rows (n,).
            at_once: ids become rows within their own step.
        """
        self._module, self._make_anew, self._mark, self._at_once = module, anew, mark, at_once
        self._anew: Anew | None = None

    @torch.no_grad()
    def __call__(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows of a batch's ids, (n,) by table; in training their owners count them first."""
        counted = self._module.training and (self._due or not self._at_once)
        if counted and any(int(owner.ahead) > len(self._pending) for owner in self.owners.values()):
            counted = self._due = False  # what a checkpoint has counted already
            self._trained() if self._at_once else self._pending.append({})
        found = {name: ids[name].unique(return_inverse=True, return_counts=True) for name in self.owners}
        rows, changed = self._exchange({name: (each, many) for name, (each, _, many) in found.items()}, counted)
        if counted:
            self._due = False
            self._apply(changed) if self._at_once else self._pending.append(changed)
        return {name: rows[name][inverse] for name, (_, inverse, _) in found.items()}

    def begin(self) -> None:
        """Begin the step of a batch whose ids were counted: the rows that it took over begin anew."""
        if self._at_once:
            self._due = True
            return
        self._apply(self._pending.popleft())
        self._trained()

    def _trained(self) -> None:
        for owner in self.owners.values():
            owner.ahead.zero_()

    def settle(self) -> None:
        """Let all rows begin anew that have changed hands, between two steps."""
        for number, changed in enumerate(self._pending):
            self._apply(changed)
            self._pending[number] = {}
        for owner in self.owners.values():
            owner.ahead.fill_(max(len(self._pending), int(owner.ahead)))

    def pass_to(self, time: int) -> None:
        """Let the data's time be this, in minutes since 1970, and ids expire; between steps, with no batch on its way.

        Nothing counts as ahead any more: what follows is another run, or increment.
        """
        self.told = {name: Told() for name in self.owners}
        none = torch.zeros(0, dtype=torch.int64, device=self.device)
        self._trained()
        expired = {name: owner.expire(time) for name, owner in self.owners.items()}
        _, changed = self._exchange(dict.fromkeys(self.owners, (none, none)), True, expired)
        self._apply(changed)
        for owner in self.owners.values():
            owner.counted.fill_(time)

    def begin_with(self, name: str, ids: Tensor, used: Tensor, waiting: Mapping[str, Tensor]) -> Tensor:
        """Give a table the ids of an earlier one of another layout; see `Owner.begin_with`. The same on every rank.

        A rank has the whole map on its host for as long as that takes.
        """
        owner = self.owners[name]
        whole = Owner(owner.table, IdMap.of(name, owner.table, "meta"))
        rows = whole.begin_with(ids, used, waiting)
        owner.copy_of(whole)
        self._apply({name: (rows[rows >= 0], ids[rows >= 0])})
        return rows

    def state(self, name: str) -> tuple[Any, dict[str, Any]]:
        """Return the live tensors of a table, as a checkpoint keeps them: its keys, and what is beside them."""
        owner = self.owners[name]
        parts, alike = owner.state()
        return self._whole(owner, owner.keys), {key: self._whole(owner, part) for key, part in parts.items()} | alike

    def _whole(self, owner: Owner, part: Tensor) -> ShardedTensor:
        """Return a tensor by rows of which every rank has its part."""
        shards = []
        for rank, rows in enumerate(held(owner.table, ranks.world())):
            if len(rows):
                shards.append(ShardMetadata([rows.start], [len(rows)], f"rank:{rank}/{self.device}"))
        own = [each for each in shards if each.shard_offsets[0] == owner.rows.start and len(part)]
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            [Shard(part, each) for each in own],
            ShardedTensorMetadata(shards, torch.Size([owner.table.rows]), TensorProperties(dtype=part.dtype)),
            sharding_spec=EnumerableShardingSpec(shards),
        )

    def _apply(self, changed: Changed) -> None:
        for name, (rows, ids) in changed.items():
            if not len(rows):
                continue
            if rows.is_cuda:  # they were made on the stream on which ids travel
                rows.record_stream(torch.cuda.current_stream(rows.device))
                ids.record_stream(torch.cuda.current_stream(rows.device))
            if self._anew is None:
                self._anew = self._make_anew()
            self._mark(name, rows)
            self._anew(name, rows, ids)

    def _exchange(
        self, asked: Mapping[str, tuple[Tensor, Tensor]], counted: bool, before: Mapping[str, list[int]] | None = None
    ) -> tuple[dict[str, Tensor], Changed]:
        """Return the rows of ids by table, and the rows that have changed hands on any rank.

        Args:
            asked: distinct ids, ascending, and their counts, (n,) each.
            counted: whether owners count them; otherwise nothing changes.
            before: what is to be told besides, see `Owner.take`.
        """
        if ranks.world() == 1:
            rows, told = self._answer(asked, counted)
            changed = {name: owner.changed() for name, owner in self.owners.items()} if counted else {}
            self._tell([_added(told, before)] if counted else [])
            return rows, changed
        world, names = ranks.world(), list(self.owners)
        ids = torch.cat([asked[name][0] for name in names])
        counts = torch.cat([asked[name][1] for name in names])
        tables = len(names)
        cell = torch.cat(
            [self.owners[name].rank_of(asked[name][0]) * tables + number for number, name in enumerate(names)]
        )
        order = cell.argsort(stable=True)  # by owner, and by table within
        sizes = torch.zeros(world * tables, dtype=torch.int64, device=cell.device)
        sizes.scatter_add_(0, cell, torch.ones_like(cell))
        theirs = torch.empty_like(sizes)
        dist.all_to_all_single(theirs, sizes)
        sent, got = (each.view(world, tables) for each in torch.stack([sizes, theirs]).cpu())
        received = torch.empty(int(got.sum()), 2, dtype=torch.int64, device=cell.device)
        parts = got.sum(1).tolist(), sent.sum(1).tolist()
        dist.all_to_all_single(received, torch.stack([ids, counts], 1)[order], *parts)
        of_table = torch.arange(tables).repeat(world).repeat_interleave(got.flatten()).to(cell.device)
        by_table = of_table.argsort(stable=True)
        groups = dict(zip(names, received[by_table].split(got.sum(0).tolist()), strict=True))
        merged = {name: each[:, 0].unique(return_inverse=True) for name, each in groups.items()}
        due = {
            name: (one, torch.zeros_like(one).index_add_(0, inverse, groups[name][:, 1]))
            for name, (one, inverse) in merged.items()
        }
        found, told = self._answer(due, counted)
        back = torch.empty(len(received), dtype=torch.int64, device=cell.device)
        back[by_table] = torch.cat([found[name][inverse] for name, (_, inverse) in merged.items()])
        own = {name: owner.changed() for name, owner in self.owners.items()} if counted else {}
        heads: list[list[list[int]]] = [[]] * world
        if counted:
            lines = [[len(own[name][0]), *line] for name, line in zip(names, _added(told, before), strict=True)]
            every = torch.empty(world * tables, 1 + TOLD, dtype=torch.int64, device=cell.device)
            dist.all_gather_into_tensor(every, torch.tensor(lines, device=cell.device))
            heads = every.view(world, tables, -1).tolist()
            self._tell([[line[1:] for line in head] for head in heads])
        news = torch.cat([torch.cat(own[name]) for name in names]) if counted else back[:0]
        more = [2 * sum(line[0] for line in head) for head in heads]
        reply = torch.cat([part for each in back.split(parts[0]) for part in (each, news)])
        answer = torch.empty(len(ids) + sum(more), dtype=torch.int64, device=cell.device)
        to, of = [n + len(news) for n in parts[0]], [n + m for n, m in zip(parts[1], more, strict=True)]
        dist.all_to_all_single(answer, reply, of, to)
        halves = answer.split([n for both in zip(parts[1], more, strict=True) for n in both])
        own_rows = torch.empty_like(ids)
        own_rows[order] = torch.cat(halves[::2])
        changed = _joined(names, heads, halves[1::2]) if counted else {}
        return dict(zip(names, own_rows.split([len(asked[name][0]) for name in names]), strict=True)), changed

    def _answer(
        self, due: Mapping[str, tuple[Tensor, Tensor]], counted: bool
    ) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Return the rows of ids that this rank owns, and what became of them."""
        if not counted:
            return {name: self.owners[name].find(ids) for name, (ids, _) in due.items()}, []
        found = {}
        for name, (ids, counts) in due.items():
            owner = self.owners[name]
            found[name] = owner.take(ids, counts, max(int(owner.counted), 0))
        return {name: rows for name, (rows, _) in found.items()}, [told for _, told in found.values()]

    def _tell(self, everyone: Iterable[list[list[int]]]) -> None:
        """Keep what all owners say of what became of ids."""
        for lines in everyone:
            for (name, owner), line in zip(self.owners.items(), lines, strict=True):
                owner.tell(line)
                if any(line):
                    self.told[name].add(Told(*line[:4]))


def _added(told: list[list[int]], before: Mapping[str, list[int]] | None) -> list[list[int]]:
    if before is None:
        return told
    return [[a + b for a, b in zip(*both, strict=True)] for both in zip(told, before.values(), strict=True)]


def _joined(names: list[str], heads: list[list[list[int]]], news: Iterable[Tensor]) -> Changed:
    """Return by table what all owners said of the rows that have changed hands."""
    found: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in names}
    for head, each in zip(heads, news, strict=True):
        sizes = [line[0] for line in head]
        for name, both, size in zip(names, each.split([2 * size for size in sizes]), sizes, strict=True):
            found[name].append(both.split([size, size]))
    return {name: (torch.cat([r for r, _ in each]), torch.cat([i for _, i in each])) for name, each in found.items()}
