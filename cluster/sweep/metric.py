"""What a sweep chooses by: a metric of the validation split, or an expression over several.

``valid/auc`` is the first task's, ``valid/like.log_loss`` another's, ``valid/new_user.like.auc`` that of a slice, and
``valid/click.auc + 0.5 * valid/like.auc`` an expression. Which direction is better follows from its metrics;
``min:`` or ``max:`` in front says it where it does not.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Recipe
from livetrain.trainers.evaluate import selection

_NAME = re.compile(r"\b([A-Za-z]\w*)/([A-Za-z]\w*(?:\.[A-Za-z]\w*){0,2})")
_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "abs": abs,
    "min": min,
    "max": max,
    "log": math.log,
    "exp": math.exp,
    "sqrt": math.sqrt,
}
_POINTS = (0.3, 0.6, 0.9)  # values of all metrics at which an expression's direction is asked


@dataclass(frozen=True)
class Metric:
    """Something to make as large (`sign` 1) or as small (-1) as possible."""

    text: str
    names: tuple[str, ...]  # of the evaluation's metrics that it needs
    sign: int
    compute: Callable[[dict[str, float]], float]

    def value(self, metrics: dict[str, Any]) -> float:
        """Return its value for an evaluation's metrics; nan where it has none there."""
        try:
            found = float(self.compute({name: float(metrics[name]) for name in self.names}))
        except (TypeError, ValueError, ArithmeticError):  # null in a log stands for nan; or a division by zero
            return math.nan
        return found if math.isfinite(found) else math.nan

    def score(self, value: float | None) -> float:
        """Return what is to be as large as possible; a value that is none is worst."""
        return -math.inf if value is None or math.isnan(value) else self.sign * value


def parse(text: str, recipe: Recipe) -> Metric:
    """Return the metric that `text` names for runs of a recipe.

    Raises:
        BadInput: no run of the recipe writes such a metric, it is no expression, or its direction is unclear.
    """
    direction, colon, body = text.partition(":")
    signs = {"max": 1, "min": -1}
    if colon and direction.strip() not in signs:
        raise BadInput(f"--metric '{text}': '{direction}' is no direction; begin with max: or min:, or leave it out")
    body = (body if colon else text).strip()
    known = selection.written(recipe)
    variables: dict[str, str] = {}  # metric -> its name in the expression

    def variable(match: re.Match[str]) -> str:
        name = _known(text, match[1], match[2], recipe, known)
        variables.setdefault(name, f"m{len(variables)}")
        return variables[name]

    compute = _compile(text, _NAME.sub(variable, body), {variable: name for name, variable in variables.items()})
    found = tuple(variables)
    sign = signs[direction.strip()] if colon else _direction(text, found, compute, known)
    metric = Metric(body, found, sign, compute)
    if all(math.isnan(metric.value(dict.fromkeys(found, point))) for point in _POINTS):
        raise BadInput(f"--metric '{text}': it is no number for any values of its metrics; mend the expression")
    return metric


def _known(text: str, split: str, name: str, recipe: Recipe, known: dict[str, int]) -> str:
    """Return the evaluation's own name of a metric; raise BadInput where no run writes it."""
    if split != "valid":
        raise BadInput(f"--metric '{text}': a sweep chooses on the validation split alone; write valid/{name}")
    full = name if "." in name else f"{next(iter(recipe.tasks))}.{name}"
    if full not in known:
        hint = nearest(full, known)
        raise BadInput(f"--metric '{text}': no run of this recipe writes valid/{full}{hint}")
    return full


def _compile(text: str, body: str, names: dict[str, str]) -> Callable[[dict[str, float]], float]:
    """Return the function of an evaluation's metrics that an expression over variables is."""
    try:
        tree = ast.parse(body, mode="eval").body
    except SyntaxError:
        raise BadInput(f"--metric '{text}': this is no expression over metrics, such as valid/auc") from None

    def of(node: ast.AST) -> Callable[[dict[str, float]], float]:
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return lambda _: number
            case ast.Name(id=variable) if variable in names:
                return lambda metrics: metrics[names[variable]]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = of(operand)
                return lambda metrics: -inner(metrics)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                do, one, two = _BINARY[type(op)], of(left), of(right)
                return lambda metrics: do(one(metrics), two(metrics))
            case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if name in _FUNCTIONS:
                parts = [of(argument) for argument in arguments]
                return lambda metrics: _FUNCTIONS[name](*(part(metrics) for part in parts))
        part = re.sub(r"\bm\d+\b", lambda found: f"valid/{names.get(found[0], found[0])}", ast.unparse(node))
        raise BadInput(
            f"--metric '{text}': '{part}' cannot stand in it; use metrics such as valid/auc, numbers, + - * / **, "
            f"and {', '.join(_FUNCTIONS)}"
        )

    compute = of(tree)
    if not names:
        raise BadInput(f"--metric '{text}': it names no metric; write one, such as valid/auc")
    return compute


def _direction(text: str, names: tuple[str, ...], compute: Callable, known: dict[str, int]) -> int:
    """Return 1 where better metrics always raise the expression, -1 where they lower it; refuse what does neither."""
    found = set()
    for point in _POINTS:
        metrics = {name: point + 0.02 * number for number, name in enumerate(names)}
        for name in names:
            try:
                here, there = compute(metrics), compute(metrics | {name: metrics[name] + 0.01 * known[name]})
            except (ValueError, ArithmeticError, TypeError):
                continue
            found.add((there > here) - (there < here))
    found.discard(0)  # a metric may not matter at a point, as the larger one of min(valid/a.auc, valid/b.auc)
    if found not in ({1}, {-1}):
        raise BadInput(
            f"--metric '{text}': say whether more or less of it is better, as 'max: {text}' or 'min: {text}'"
        )
    return found.pop()
