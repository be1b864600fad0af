"""Formulas over numbers that have names, as ``click ** a * (1 + b * watch) ** c``: read and checked, never run as code.

A formula becomes a list of steps, each of which puts a number on a stack or takes its operands from there.
"""

import ast
from collections.abc import Collection
from typing import Any

from livetrain.configs.errors import BadInput, nearest

MOST = 1000  # characters, and steps
Step = tuple[str, Any]  # ("number", 2.0), ("name", "click"), or an operation with the number of its operands

_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_CALLS = {"pow": 2, "log": 1, "exp": 1, "sqrt": 1, "abs": 1, "min": 0, "max": 0}  # operands; 0: two or more
_AS = {"pow": "**"}


def parse(text: str, names: Collection[str], place: str) -> list[Step]:
    """Return the steps of a formula.

    Args:
        text: numbers, names, brackets, ``+ - * / **``, and pow, log, exp, sqrt, abs, min and max.
        names: that it may use.
        place: of the formula in the user's file, for messages.

    Raises:
        BadInput: it is no such formula.

    Example:
        >>> parse("click ** a * 2", ["click", "a"], "fusion.score")
        [('name', 'click'), ('name', 'a'), ('**', 2), ('number', 2.0), ('*', 2)]
    """
    if len(text) > MOST:
        raise BadInput(
            f"{place}: a formula has at most {MOST:,} characters, and this one has {len(text):,}; shorten it"
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise BadInput(
            f"{place}: this is no formula; write numbers, names, brackets and + - * / **, as in click ** 0.5 * like"
        ) from None
    steps: list[Step] = []
    try:
        _read(tree, steps, names, place)
    except RecursionError:
        raise BadInput(f"{place}: its brackets and dots are nested too deep; write a shorter formula") from None
    return steps


def named(steps: list[Step]) -> list[str]:
    """Return the names that a formula uses, each once, in their order."""
    return list(dict.fromkeys(value for step, value in steps if step == "name"))


def _read(node: ast.expr, steps: list[Step], names: Collection[str], place: str) -> None:
    """Add the steps of a part of a formula."""
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30:
        steps.append(("number", float(value)))
    elif isinstance(node, ast.Name):
        if node.id not in names:
            raise BadInput(
                f"{place}: '{node.id[:50]}' is neither a task nor one of the weights{nearest(node.id, names)}"
            )
        steps.append(("name", node.id))
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        _read(node.left, steps, names, place)
        _read(node.right, steps, names, place)
        steps.append((_BINARY[type(node.op)], 2))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        _read(node.operand, steps, names, place)
        if isinstance(node.op, ast.USub):
            steps.append(("negative", 1))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        _call(node, node.func.id, steps, names, place)
    else:
        part = ast.unparse(node)
        raise BadInput(
            f"{place}: '{part[:50]}' has no place in a formula, which has numbers, names, brackets, + - * / **, and "
            f"{', '.join(_CALLS)}"
        )


def _call(node: ast.Call, called: str, steps: list[Step], names: Collection[str], place: str) -> None:
    wanted, given = _CALLS[called], len(node.args)
    if node.keywords or (given != wanted if wanted else given < 2):
        what = f"{wanted}" if wanted else "two or more"
        raise BadInput(f"{place}: {called} takes {what} operands, and '{ast.unparse(node)[:50]}' gives it {given}")
    for operand in node.args:
        _read(operand, steps, names, place)
    steps.append((_AS.get(called, called), given))
