"""Small, plausible mistakes, one at a time, in a module's source.

A mutant is the module with one expression or statement changed as a slip of the hand would change
it. Nothing is run here. Left alone is what cannot change behaviour (annotations, docstrings) or
is made for eyes only (log lines, messages of errors, f-strings).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Mutant", "mutants"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake.

    Attributes:
        place: The function, method or class it is in; "" at the module's top.
        old: What stood there; a long line is cut down to the place of the change.
        new: What stands there now.
        source: The whole module with the mistake in it.
    """

    place: str
    old: str
    new: str
    source: str


@dataclass(frozen=True, slots=True)
class _Site:
    """Where a node hangs in the tree, so that another can be put there and taken away again."""

    place: str
    holder: ast.AST
    field: str
    index: int | None
    node: ast.AST
    runs: bool
    """Whether it is in a function: what is only there to define names is not deleted."""

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.holder, self.field, node)
        else:
            getattr(self.holder, self.field)[self.index] = node


_NOT_BEHAVIOUR = frozenset({"annotation", "returns", "decorator_list", "bases", "ctx"})
_NAMES_NOT_BEHAVIOUR = frozenset({"__all__", "__slots__", "_log"})
_TYPING = frozenset({"ParamSpec", "TypeVar"})

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module, each text once, in the order of the source."""
    tree = ast.parse(source)
    before = ast.unparse(tree)
    seen = {before}
    for site in _sites(tree, "", runs=False):
        for replacement in _variants(site):
            site.put(replacement)
            after = ast.unparse(tree)
            site.put(site.node)
            if after not in seen:
                seen.add(after)
                yield Mutant(site.place, *_difference(before, after), after)


def _sites(holder: ast.AST, place: str, *, runs: bool) -> Iterator[_Site]:
    for field, value in ast.iter_fields(holder):
        if field in _NOT_BEHAVIOUR:
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or _is_left_alone(node):
                continue
            yield _Site(
                place, holder, field, index if isinstance(value, list) else None, node, runs
            )
            if isinstance(node, ast.Raise):
                continue  # its message
            inner, inner_runs = place, runs
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = f"{place}.{node.name}".lstrip(".")
                inner_runs = not isinstance(node, ast.ClassDef)
            yield from _sites(node, inner, runs=inner_runs)


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name in _NAMES_NOT_BEHAVIOUR
        case ast.Call(func=ast.Name(id=name)):
            return name in _TYPING
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name))):
            return name == "_log"
        case ast.FunctionDef(name=name):
            return name == "__repr__"
    return False


def _variants(site: _Site) -> Iterator[ast.AST]:
    if site.field == "test":
        yield ast.Constant(value=True)
        yield ast.Constant(value=False)
    match site.node:
        case ast.stmt() as statement if site.runs:
            yield from _statements(statement)
        case ast.Dict() | ast.Set() as table:
            yield from _tables(table)
        case ast.Constant(value=value):
            yield from map(_constant, _other_values(value))
        case ast.expr() as expression:
            yield from _expressions(expression)


def _statements(statement: ast.stmt) -> Iterator[ast.stmt]:
    match statement:
        case ast.Return(value=value):
            if not isinstance(value, ast.Constant | None):  # a constant has mutants of its own
                yield ast.Return(value=ast.Constant(value=None))
        case ast.AugAssign(target=target, op=op, value=value):
            yield ast.Pass()
            if type(op) in _ARITHMETIC:
                yield ast.AugAssign(target=target, op=_ARITHMETIC[type(op)](), value=value)
        case ast.Assign() | ast.AnnAssign() | ast.Expr() | ast.Raise():
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()


def _expressions(expression: ast.expr) -> Iterator[ast.expr]:
    match expression:
        case ast.Compare():
            yield from _other_comparisons(expression)
        case ast.BoolOp(op=logic, values=values):
            yield ast.BoolOp(op=ast.And() if isinstance(logic, ast.Or) else ast.Or(), values=values)
            for index in range(len(values)):
                rest = _without(values, index)
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op=logic, values=rest)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _ARITHMETIC:
            yield ast.BinOp(left=left, op=_ARITHMETIC[type(operation)](), right=right)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in _FUNCTIONS:
            yield ast.Call(func=ast.Name(id=_FUNCTIONS[name]), args=args, keywords=keywords)


def _other_comparisons(comparison: ast.Compare) -> Iterator[ast.Compare]:
    for index, operation in enumerate(comparison.ops):
        for other in _COMPARISONS[type(operation)]:
            ops = [*comparison.ops[:index], other(), *comparison.ops[index + 1 :]]
            yield ast.Compare(left=comparison.left, ops=ops, comparators=comparison.comparators)


def _tables(table: ast.Dict | ast.Set) -> Iterator[ast.expr]:
    """A table without one of its entries, or with the entry's value taken from another."""
    if isinstance(table, ast.Set):
        for index in range(len(table.elts) if len(table.elts) > 1 else 0):
            yield ast.Set(elts=_without(table.elts, index))
        return
    texts = [ast.unparse(value) for value in table.values]
    for index, text in enumerate(texts):
        keys, values = list(table.keys), list(table.values)
        yield ast.Dict(keys=_without(keys, index), values=_without(values, index))
        others = [i for i, other in enumerate(texts) if other != text]
        if others:
            values[index] = table.values[min(others, key=lambda i: (i - index) % len(texts))]
            yield ast.Dict(keys=keys, values=values)


def _without(items: list[T], index: int) -> list[T]:
    return items[:index] + items[index + 1 :]


def _other_values(value: object) -> Iterator[object]:
    match value:
        case bool():
            yield not value
        case int():
            yield value + 1
            yield value - 1
        case float():
            yield value + 1
            yield value / 2
        case str():
            yield f"{value}~"


def _constant(value: object) -> ast.expr:
    # A negative number is an operator and a number, or the text would not be the tree's.
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
        return ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=-value))
    assert isinstance(value, str | int | float)
    return ast.Constant(value=value)


_AROUND = 40
"""Characters kept on either side of the change in a line that is too long to read."""


def _difference(before: str, after: str) -> tuple[str, str]:
    """The lines that differ, cut down to what tells them apart where they are long."""
    old, new = before.splitlines(), after.splitlines()
    top, bottom = _same_at_the_ends(old, new)
    was = " ".join(line.strip() for line in old[top : len(old) - bottom])
    now = " ".join(line.strip() for line in new[top : len(new) - bottom])
    if max(len(was), len(now)) <= 2 * _AROUND:
        return was, now
    left, right = _same_at_the_ends(was, now)
    left, right = max(0, left - _AROUND), max(0, right - _AROUND)
    return was[left : len(was) - right].strip(), now[left : len(now) - right].strip()


def _same_at_the_ends(one: Sequence[str], other: Sequence[str]) -> tuple[int, int]:
    """How many items are the same from the front, and of the rest from the back."""
    most = min(len(one), len(other))
    front = next((i for i in range(most) if one[i] != other[i]), most)
    most -= front
    back = next((i for i in range(most) if one[-1 - i] != other[-1 - i]), most)
    return front, back
