"""The proof, before a run trains, that its model can be exported and reads every row as it should.

A few made-up rows go through the model, with small tables in the place of its own, and through the TorchScript file
that would be exported of it. Some of the rows lack features, as rows do.
"""

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Requests
from livetrain.modules.model import Model
from livetrain.modules.models.registry import network
from livetrain.modules.network import REGULARISER
from livetrain.modules.serving.scorer import Scorer

_ROWS = 6
_TABLE = 8  # rows of a table
_MEND = "read ids by self.row and histories by self.pool"
_PROVED: set[tuple[str, ...]] = set()  # what this process has proved: trials and nights have one network


@dataclass
class _Rows:
    """B rows as the exported file takes them: ids and their numbers per row, and numbers, by feature."""

    ids: dict[str, Tensor]
    lengths: dict[str, Tensor]
    dense: dict[str, Tensor]

    def row(self, place: int, names: list[str] | None = None) -> "_Rows":
        """Return one row's features, or one row's of `names` beside all rows' others."""
        out = _Rows({}, {}, {})
        for name, lengths in self.lengths.items():
            if names is not None and name not in names:
                out.ids[name], out.lengths[name] = self.ids[name], lengths
                continue
            end = int(lengths[: place + 1].sum())
            out.ids[name] = self.ids[name][end - int(lengths[place]) : end]
            out.lengths[name] = lengths[place : place + 1]
            if name in self.dense:  # what lies beside ids
                out.dense[name] = self.dense[name][end - int(lengths[place]) : end]
        for name, column in self.dense.items():
            if name not in out.dense:
                one = name not in self.lengths and (names is None or name in names)
                out.dense[name] = column[place : place + 1] if one else column
        return out

    def call(self, function: Callable) -> dict[str, Tensor]:
        """Return the answer of an exported file's method."""
        return function(self.ids, self.lengths, self.dense)


def prove(recipe: Recipe) -> None:
    """Run a recipe's model on made-up rows, script it, and compare the two.

    Raises:
        BadInput: the model fails, answers something else than a logit per row and task, reads rows that lack a feature
            as though they had it, lets rows change each other's scores, or cannot be exported as it is.
    """
    recipe = _small(recipe)
    parts = (
        *recipe.features.values(),
        *recipe.tables.values(),
        *recipe.tasks.values(),
        recipe.train.accumulate,
        recipe.data.layout,
    )
    key = tuple(map(repr, (network(recipe.model.kind), recipe.model, list(recipe.features), list(recipe.tasks), parts)))
    if key in _PROVED:
        return
    _prove(recipe)
    _PROVED.add(key)


def trial(recipe: Recipe) -> tuple[Model, tuple]:
    """Return a recipe's model with small tables, and made-up rows as it takes them in training."""
    recipe = _small(recipe)
    return Model(recipe).train(), _inputs(_made_up(recipe, whole=False), recipe)


def _small(recipe: Recipe) -> Recipe:
    small = {name: table.model_copy(update={"rows": _TABLE}) for name, table in recipe.tables.items()}
    return recipe.model_copy(update={"tables": small})


def _prove(recipe: Recipe) -> None:
    model = Model(recipe).eval().requires_grad_(False)
    model.dense.in_bfloat16 = False
    scorer, kind = Scorer(model, recipe).eval(), f"model.kind: '{recipe.model.kind}'"
    with torch.no_grad():
        _answers(kind, model, recipe, _made_up(recipe, whole=True), "rows that have every feature", "mend its forward")
        rows = _made_up(recipe, whole=False)
        scores = _answers(kind, model, recipe, rows, "rows of which some lack a feature", _MEND)
        _check_rows(kind, scores, rows, scorer)
        _check_rank(kind, recipe, rows, scorer)
        try:
            with torch.jit.optimized_execution(False):  # one call is not worth a plan for its speed
                found = rows.call(torch.jit.script(scorer))
        except Exception as error:
            raise BadInput(
                f"{kind} cannot be exported: TorchScript refuses it ({short(error)}); write its forward in what "
                "TorchScript knows"
            ) from error
        _check_same(f"{kind} scores otherwise when exported", found, scores)
        if recipe.data.layout == "request":
            _check_requests(kind, model, recipe, rows)
    if recipe.train.accumulate > 1:
        _check_parts(kind, recipe, rows)


def _check_parts(kind: str, recipe: Recipe, rows: _Rows) -> None:
    """Refuse a network that learns otherwise from a batch in parts: one that looks at other rows, as Dice does."""
    model = Model(recipe)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    inputs = _inputs(rows, recipe)
    why = f"{kind} learns of a row by the other rows of its batch"
    mend = "use accumulate: 1, or layers that see one row at a time (activation: relu or running_dice)"
    found = []
    for parts in (1, 2):
        model.dense.parts = parts
        try:
            logits = model(*inputs)
        except Exception as error:
            raise BadInput(f"train.accumulate: {why} ({short(error)}); {mend}") from error
        if REGULARISER in logits:
            raise BadInput(f"train.accumulate: {kind} has a loss of its own over the whole batch; use accumulate: 1")
        found.append({task: logit.detach() for task, logit in logits.items()})
    _check_same(f"train.accumulate: {why}", found[1], found[0], mend)


def _made_up(recipe: Recipe, whole: bool) -> _Rows:
    """Return rows that have every feature, or of which each lacks some."""
    rows = _Rows({}, {}, {})
    limits = [f.limit for f in recipe.features.values() if f.form == "sequence"]
    longest = min([2, *limits])
    for place, (name, feature) in enumerate(recipe.features.items()):
        number = torch.arange(_ROWS) + place
        if feature.carrier == "numbers":
            rows.dense[name] = _numbers(torch.sin(number.float()), feature.numbers, place)
            if not whole:
                rows.dense[name][number % 4 == 0] = float("nan")
            continue
        if feature.carrier == "features":
            continue
        # The lists of one history are equally long in every row.
        lengths = torch.arange(_ROWS).remainder(3) if feature.form == "sequence" else number.remainder(3)
        most = longest if feature.form == "sequence" else min(2, feature.limit)
        rows.lengths[name] = torch.full((_ROWS,), most) if whole else lengths.clamp(max=most)
        rows.ids[name] = torch.arange(int(rows.lengths[name].sum())) * 7 + place
        if (beside := recipe.beside(name)) is not None:
            rows.dense[name] = _numbers(torch.cos(rows.ids[name].float()), beside[1], place)
            if feature.carried and not whole:
                rows.dense[name][::3] = float("nan")
    return rows


def _numbers(each: Tensor, width: int, seed: int) -> Tensor:
    """Return different numbers, (n,), or (n, width) of a width above 1."""
    if width == 1:
        return each
    return each.unsqueeze(1) * torch.rand(width, generator=torch.Generator().manual_seed(seed))


def _inputs(rows: _Rows, recipe: Recipe) -> tuple[KeyedJaggedTensor, Tensor, Tensor, Tensor | None]:
    """Return rows as a model takes them in training."""
    carrying = [name for name in rows.ids if recipe.features[name].carried]
    weights = [
        rows.dense[name] if recipe.features[name].weighted else torch.ones(len(ids)) for name, ids in rows.ids.items()
    ]
    ids = KeyedJaggedTensor(
        keys=list(rows.ids),
        values=torch.cat([*rows.ids.values(), torch.zeros(0, dtype=torch.long)]),
        weights=torch.cat([*weights, torch.zeros(0)]),
        lengths=torch.cat([*rows.lengths.values(), torch.zeros(0, dtype=torch.long)]),
    )
    numbers = [column for name, column in rows.dense.items() if name not in rows.ids]
    dense = torch.column_stack(numbers) if numbers else torch.zeros(_ROWS, 0)
    vectors = torch.cat([rows.dense[name].flatten() for name in carrying]) if carrying else None
    return ids, dense, torch.ones(_ROWS), vectors


def _answers(kind: str, model: Model, recipe: Recipe, rows: _Rows, what: str, mend: str) -> dict[str, Tensor]:
    """Return the predictions that the model makes in training's way, or say what is wrong with them."""
    try:
        logits = model(*_inputs(rows, recipe))
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{kind} fails on {what} ({short(error)}); {mend}") from error
    for task in recipe.answered:
        if task not in logits:
            raise BadInput(f"{kind} answers no logit of task '{task}'; end its forward with modules.tasks.heads.Heads")
        if logits[task].shape != (_ROWS,):
            raise BadInput(
                f"{kind} answers {list(logits[task].shape)} logits of task '{task}' for {what}, of which there are "
                f"{_ROWS}; {mend}"
            )
    return Scorer(model, recipe).answers(logits)


def _check_rows(kind: str, scores: dict[str, Tensor], rows: _Rows, scorer: Scorer) -> None:
    """Refuse a model that scores a row otherwise when it is alone."""
    for place in range(_ROWS):
        alone = rows.row(place).call(scorer)
        wanted = {task: score[place : place + 1] for task, score in scores.items()}
        _check_same(f"{kind} scores a row otherwise beside other rows than alone", alone, wanted, _MEND)


def _check_rank(kind: str, recipe: Recipe, rows: _Rows, scorer: Scorer) -> None:
    """Refuse a model that scores candidates of one user otherwise when the user's features are given once."""
    shared = [name for name, f in recipe.features.items() if f.form == "sequence"]
    shared = shared or list(recipe.features)[: len(recipe.features) // 2]
    for place in (2, 0):  # of the longest history, and of none
        once = rows.row(place, shared).call(scorer.rank) if shared else {}
        for row in range(_ROWS if shared else 0):
            theirs, own = rows.row(place), rows.row(row)
            for part, given in ((own.ids, theirs.ids), (own.lengths, theirs.lengths), (own.dense, theirs.dense)):
                part |= {name: value for name, value in given.items() if name in shared}
            wanted = own.call(scorer)
            found = {task: score[row : row + 1] for task, score in once.items()}
            mend = "let it expand them to the rows of `dense`, or leave `shares` out"
            _check_same(f"{kind} scores otherwise where rows share features", found, wanted, mend)


def _check_requests(kind: str, model: Model, recipe: Recipe, rows: _Rows) -> None:
    """Refuse a model that scores the rows of a request otherwise when what they share is given once per request."""
    shared = [name for name in rows.ids if recipe.features[name].form == "sequence"] or list(rows.ids)[:1]
    theirs, once, own = rows.row(2), _Rows({}, {}, dict(rows.dense)), _Rows({}, {}, dict(rows.dense))
    for name, lengths in rows.lengths.items():
        for part in (once, own):
            part.ids[name], part.lengths[name] = rows.ids[name], lengths
        if name in shared:
            count = int(theirs.lengths[name])
            once.ids[name], once.lengths[name] = theirs.ids[name], torch.tensor([count] + [0] * (_ROWS - 1))
            own.ids[name], own.lengths[name] = theirs.ids[name].repeat(_ROWS), torch.full((_ROWS,), count)
            if name in rows.dense:  # what lies beside ids
                beside = theirs.dense[name]
                once.dense[name], own.dense[name] = beside, torch.cat([beside] * _ROWS)
    totals = {name: len(own.ids[name]) for name in shared}
    mend = "let `row`, `pool` or jagged.of_rows give each row its own, or leave `shares` out"
    try:
        found = model(*_inputs(once, recipe), Requests(torch.zeros(_ROWS, dtype=torch.long), 2, totals))
    except Exception as error:
        raise BadInput(f"{kind} fails on rows of one request ({short(error)}); {mend}") from error
    _check_same(
        f"{kind} scores otherwise where rows of a request share features", found, model(*_inputs(own, recipe)), mend
    )


def _check_same(what: str, found: dict[str, Tensor], wanted: dict[str, Tensor], mend: str = "mend its forward") -> None:
    for task, score in wanted.items():
        same = found[task].shape == score.shape
        if not same or not torch.allclose(found[task], score, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise BadInput(f"{what} (task '{task}'); {mend}")


def short(error: Exception) -> str:
    """Return an error in a few words, with the last line of code outside torch that it names."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    places += re.findall(r'File "([^"]+)", line (\d+)', str(error))
    file, line = next((place for place in reversed(places) if "/torch/" not in place[0]), places[-1])
    return f"{first[:90].rstrip(':. ')}, at {file.rpartition('/')[2]}:{line}"
