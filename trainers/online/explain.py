"""Why a logged request was answered as it was: what each feature adds to a candidate's scores, and its place.

A feature's part is told by ablation: the score, less the mean of the scores that the same candidate gets where this
feature alone has the values of other logged candidates (the background). Sequences whose lists always have one length
are one history and change together. On the scale on which tasks add up, log-odds of a probability and else the number
itself, the parts of a model that adds its features up are exactly its terms, and

    score = base + sum of parts + rest,    base = mean score of the background,

so that the rest is what features do together. A background is the default since a missing value is often rarer than
any other, and says what the model makes of rare rows; without one (size 0) each feature is replaced by its missing
value, and the base is the row that misses all.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import FUSED, Recipe
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.data.checks.roles import ITEMS
from livetrain.trainers.online.request_log import Given, RequestLog

BACKGROUND = 64
_SEED = 1
_AND = " + "  # between the names of features that change together
_LEAST = 1e-7  # from 0 and 1, of a probability's log-odds


@dataclass(frozen=True)
class Explained:
    """A request, its candidates, and the parts of one of them, as JSON has them."""

    request: dict[str, Any]
    candidates: list[dict[str, Any]]
    candidate: dict[str, Any]


def explain(
    one: pa.Table,
    others: pa.Table,
    recipe: Recipe,
    model: Any,
    item: str | None = None,
    candidate: int | None = None,
    background: int = BACKGROUND,
    place: str = "the log",
    weights: dict[str, float] | None = None,
) -> Explained:
    """Explain a request.

    Args:
        one: the request, a row of a log.
        others: requests whose candidates are the background.
        recipe: of the model.
        model: called with ids, lengths and dense by feature, gives (B,) scores by task.
        item: feature that names candidates; by default one that is called as items are.
        candidate: which, its best place where it comes twice; by default the one in the first place.
        background: how many logged candidates; 0 takes missing values in their place.
        place: where the log lies, for messages.
        weights: of the fused score's formula, where the model answers one.

    Raises:
        BadInput: the log is of another model, or has no such candidate.
    """
    log = RequestLog(one, recipe, place)
    named = _item(recipe, log, item)
    ids = log.by_candidate(named)
    items = [part.tolist()[0] if len(part) else None for part in _rows(ids)]
    places = _places(one, len(items))
    candidates = _candidates(one, recipe, items, places)
    if not items:
        raise BadInput(f"{place}: the request has no candidates, so that there is nothing to explain")
    row = places.index(1) if 1 in places else 0
    if candidate is not None:
        if candidate not in items:
            raise BadInput(f"--candidate {candidate}: is none of the request's {len(items)}; as {items[0]} is")
        named_so = [at for at, each in enumerate(items) if each == candidate]  # two channels may have brought it
        row = min(named_so, key=lambda at: places[at] or len(items) + 1)
    values = {name: _plain(log.by_candidate(name, np.array([row])), log.kind(name)) for name in log.features}
    every = RequestLog(others, recipe, place)
    groups = _groups(log, every, recipe)
    parts = _parts(log, row, every, groups, recipe, model, background)
    features = {
        _AND.join(group): values[group[0]] if len(group) == 1 else [*map(values.get, group)] for group in groups
    }
    whole = _scored(model, {name: log.by_candidate(name) for name in log.features})
    told = {task: one[f"scores.{task}"][0].as_py() for task in whole if f"scores.{task}" in one.column_names}
    apart = [np.abs(whole[task] - np.array(scores)).max() for task, scores in told.items() if scores]
    request = {name: one[name][0].as_py() for name in ("request_id", "time", "model", "version", "fence", "delta")
               if name in one.column_names}  # fmt: skip
    request |= {
        "user": {name: _plain(log.given(name), log.kind(name)) for name in log.mine},
        "stored": one["stored"][0].as_py() if "stored" in one.column_names else None,
        "fusion": None
        if recipe.fusion is None or weights is None
        else {"score": recipe.fusion.score, "weights": weights},
        "largest difference from the logged scores": float(max(apart)) if apart else None,
    }
    return Explained(request, candidates, candidates[row] | {"features": features, **parts})


def _item(recipe: Recipe, log: RequestLog, asked: str | None) -> str:
    own = [n for n in log.features if n not in log.mine and recipe.features[n].carrier == "ids"]
    own = [name for name in own if not recipe.features[name].lists]
    if asked is not None and asked not in own:
        raise BadInput(f"--item {asked}: is no id feature of the candidates; name one of {', '.join(own)}")
    if not own:
        raise BadInput("the model has no id feature of the candidates, by which they could be told")
    return asked or next((name for name in ITEMS if name in own), own[0])


def _rows(given: Given) -> list[np.ndarray]:
    assert given.counts is not None  # it is of ids
    return np.split(given.values, np.cumsum(given.counts)[:-1])


def _places(one: pa.Table, count: int) -> list[int | None]:
    """Return each candidate's place from 1 on, None of those that were cut before."""
    places: list[int | None] = [None] * count
    order = one["order"][0].as_py() if "order" in one.column_names else None
    for place, candidate in enumerate(order or [], 1):
        places[candidate] = place
    return places


def _candidates(
    one: pa.Table, recipe: Recipe, items: list[int | None], places: list[int | None]
) -> list[dict[str, Any]]:
    """Return of each candidate its item, channel, scores and place."""
    columns = {"channel": "channel", "prerank": "prerank"}
    columns |= {f"score {task}": f"scores.{task}" for task in (*recipe.answered, FUSED)}
    lists = {shown: one[name][0].as_py() for shown, name in columns.items() if name in one.column_names}
    return [
        {"place": places[at], "item": each, **{name: values[at] for name, values in lists.items() if values}}
        for at, each in enumerate(items)
    ]


def _plain(given: Given, kind: str | None) -> Any:
    values = [None if each != each else each for each in given.values.ravel().tolist()]
    if kind is not None and given.beside is not None:
        return {"ids": values, kind: given.beside.tolist()}
    return values[0] if given.counts is None and len(values) == 1 else values


def _scored(model: Any, rows: dict[str, Given]) -> dict[str, np.ndarray]:
    ids = {name: torch.tensor(part.values) for name, part in rows.items() if part.counts is not None}
    lengths = {name: torch.tensor(part.counts) for name, part in rows.items() if part.counts is not None}
    dense = {name: torch.tensor(part.values) for name, part in rows.items() if part.counts is None}
    dense |= {name: torch.tensor(part.beside) for name, part in rows.items() if part.beside is not None}
    with torch.inference_mode():
        return {task: scores.numpy().astype(np.float64) for task, scores in model(ids, lengths, dense).items()}


def _parts(
    log: RequestLog, row: int, others: RequestLog, groups: list[list[str]], recipe: Recipe, model: Any, background: int
) -> dict[str, Any]:
    """Return the parts of one candidate's scores, by task."""
    count = int(others.counts.sum())
    size = min(background, count)
    drawn = np.sort(np.random.default_rng(_SEED).choice(count, size, replace=False))
    size = size or 1
    # Rows of the model's call: the candidate, the background, and per feature the candidate with the background's.
    blocks = 1 + size + size * len(groups)
    rows: dict[str, Given] = {}
    for name in log.features:
        own = log.by_candidate(name, np.array([row]))
        taken = others.by_candidate(name, drawn) if background else _missing(own)
        index = np.zeros(blocks, np.int64)
        index[1 : 1 + size] = 1 + np.arange(size)
        begin = 1 + size * (1 + next(place for place, group in enumerate(groups) if name in group))
        index[begin : begin + size] = 1 + np.arange(size)
        rows[name] = _joined(own, taken).take(index)
    probable = {name for name, kind in kinds(recipe.answered).items() if kind.output == "probability"}
    tasks = {}
    for task, scores in _scored(model, rows).items():
        scale = _log_odds(scores) if task in probable else scores
        means = scale[1:].reshape(-1, size).mean(1)
        parts = {_AND.join(group): float(scale[0] - means[1 + at]) for at, group in enumerate(groups)}
        tasks[task] = {
            "score": float(scores[0]),
            "scale": "log-odds" if task in probable else "score",
            "value": float(scale[0]),
            "base": float(means[0]),
            "parts": dict(sorted(parts.items(), key=lambda part: -abs(part[1]))),
            "rest": float(scale[0] - means[0] - sum(parts.values())),
        }
    words = f"{size} logged candidates" if background else "missing values"
    return {"background": words, "tasks": tasks}


def _groups(log: RequestLog, others: RequestLog, recipe: Recipe) -> list[list[str]]:
    """Return the features that change together."""
    groups: dict[Any, list[str]] = {}
    for name in log.features:
        key: Any = name
        if recipe.features[name].form == "sequence":
            counts = [each.given(name).counts for each in (log, others)]
            key = name in log.mine, *(each.tobytes() for each in counts if each is not None)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _missing(own: Given) -> Given:
    if own.counts is None:
        return Given(np.full_like(own.values, np.nan))
    return Given(own.values[:0], np.zeros(1, np.int64), None if own.beside is None else own.beside[:0])


def _joined(one: Given, other: Given) -> Given:
    pairs = ((one.counts, other.counts), (one.beside, other.beside))
    counts, beside = (None if a is None or b is None else np.concatenate([a, b]) for a, b in pairs)
    return Given(np.concatenate([one.values, other.values]), counts, beside)


def _log_odds(probability: np.ndarray) -> np.ndarray:
    inside = np.clip(probability, _LEAST, 1 - _LEAST)
    return np.log(inside) - np.log1p(-inside)
