"""The rules of claims: which measured numbers mean *supports*, *contradicts*, *inconclusive*.

A rule that begins with `supports if` is computed:

    supports if gain > 2 * spread; contradicts if gain < -2 * spread
    supports if apart < 1e-4; contradicts otherwise

The conditions are comparisons of named numbers with `and`, `or`, `not`, + - * / ** and brackets.
What fits neither of the two is inconclusive. A third part, `; where gain is …`, tells the reader
what the names mean. Any other text is prose: its chapter computes the verdict.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Mapping
from numbers import Real

COMPUTED = re.compile(
    r"supports if (?P<supports>[^;]+); contradicts (?:if (?P<if>[^;]+)|otherwise)(?:; where .+)?"
)
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
COMPARISONS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def computed(rule: str) -> bool:
    """Whether a verdict can be computed from this rule."""
    return rule.startswith("supports if ")


def names(rule: str) -> list[str]:
    """The numbers that a rule compares, sorted; raises `ValueError` where it can't be read."""
    conditions = [tree for tree in parts(rule) if tree is not None]
    nodes = [node for tree in conditions for node in ast.walk(tree)]
    return sorted({node.id for node in nodes if isinstance(node, ast.Name)})


def verdict(rule: str, values: Mapping[str, float]) -> str:
    """`supports`, `contradicts` or `inconclusive`, from a rule and the numbers that it names.

    Raises `ValueError` for a rule that can't be read, for numbers that it does not name or that
    are missing or not finite, and where both of its parts hold.
    """
    wanted = names(rule)
    missing = sorted(set(wanted) - set(values))
    unknown = sorted(set(values) - set(wanted))
    if missing or unknown:
        wrong = ", ".join([f"{n!r} is missing" for n in missing] + [f"no {n!r}" for n in unknown])
        raise ValueError(f"the rule {rule!r} compares {', '.join(wanted)}: {wrong}")
    numbers = {name: finite(name, value) for name, value in values.items()}
    supports, contradicts = parts(rule)
    holds = bool(evaluate(supports, numbers))
    fails = not holds if contradicts is None else bool(evaluate(contradicts, numbers))
    if holds and fails:
        raise ValueError(f"the rule {rule!r} both supports and contradicts with {numbers}")
    return "supports" if holds else "contradicts" if fails else "inconclusive"


def finite(name: str, value: object) -> float:
    """The value as a float; tensors and arrays of one number are numbers, too."""
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, Real) or not math.isfinite(number):
        raise ValueError(f"{name}={value!r} must be a finite number")
    return float(number)


def parts(rule: str) -> tuple[ast.expr, ast.expr | None]:
    """The two conditions of a computed rule; the second is `None` for `contradicts otherwise`."""
    match = COMPUTED.fullmatch(rule)
    if match is None:
        raise ValueError(
            f"the rule {rule!r} can't be read; wanted 'supports if …; contradicts if …' or"
            " 'supports if …; contradicts otherwise', and perhaps '; where …'"
        )
    contradicts = match["if"] and condition(match["if"])
    return condition(match["supports"]), contradicts


def condition(text: str) -> ast.expr:
    """The syntax tree of a comparison that holds nothing but what the grammar allows."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no comparison of numbers: {error.msg}") from error
    check_truth(tree, text)
    return tree


def check_truth(node: ast.expr, text: str) -> None:
    """A comparison, or comparisons joined by and, or, not."""
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            check_truth(value, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        check_truth(node.operand, text)
    elif isinstance(node, ast.Compare) and all(type(op) in COMPARISONS for op in node.ops):
        for side in (node.left, *node.comparators):
            check_number(side, text)
    else:
        raise ValueError(f"{text!r}: {ast.unparse(node)!r} is no comparison of numbers")


def check_number(node: ast.expr, text: str) -> None:
    """A named or written number, or arithmetic of them."""
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        check_number(node.left, text)
        check_number(node.right, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        check_number(node.operand, text)
    elif not isinstance(node, ast.Name) and not is_number(node):
        raise ValueError(f"{text!r}: {ast.unparse(node)!r} is neither a name nor a number")


def is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def evaluate(node: ast.expr, numbers: Mapping[str, float]) -> float | bool:
    """The value of a tree that `condition` has checked."""
    match node:
        case ast.Constant():
            return float(node.value)  # a power of whole numbers could be endless
        case ast.Name():
            return numbers[node.id]
        case ast.BinOp():
            return arithmetic(node, numbers)
        case ast.UnaryOp(op=ast.Not()):
            return not evaluate(node.operand, numbers)
        case ast.UnaryOp():
            return -evaluate(node.operand, numbers)
        case ast.BoolOp(op=ast.And()):
            return all(evaluate(value, numbers) for value in node.values)
        case ast.BoolOp():
            return any(evaluate(value, numbers) for value in node.values)
    sides = [evaluate(side, numbers) for side in (node.left, *node.comparators)]
    pairs = zip(node.ops, sides[:-1], sides[1:], strict=True)
    return all(COMPARISONS[type(op)](left, right) for op, left, right in pairs)


def arithmetic(node: ast.BinOp, numbers: Mapping[str, float]) -> float:
    try:
        left, right = evaluate(node.left, numbers), evaluate(node.right, numbers)
        value = ARITHMETIC[type(node.op)](left, right)
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{ast.unparse(node)} of a rule has no value: {error}") from error
    if isinstance(value, complex):
        raise ValueError(f"{ast.unparse(node)} of a rule has no real value")
    return value
