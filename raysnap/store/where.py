"""Filter expressions over snapshots, such as `architecture == 'resnet18' and accuracy > 0.8`, compiled to SQL.

Python's parser reads the text, a small set of its nodes is allowed, and nothing is ever evaluated: constants become
SQL parameters, and names must be fields.
"""

from __future__ import annotations

import ast
from typing import TypeAlias

from raysnap.errors import UsageError
from raysnap.humanize import suggest

TEXT, NUMBER = "text", "number"
FIELDS: dict[str, str] = {
    "id": TEXT,
    "name": TEXT,
    "architecture": TEXT,
    "dataset": TEXT,
    "retrain_index": NUMBER,
    "accuracy": NUMBER,
    "num_classes": NUMBER,
    "num_blocks": NUMBER,
    "num_bytes": NUMBER,
    "image_size": NUMBER,
    "body": TEXT,
    "base": TEXT,
    "trial": TEXT,
    "created": TEXT,
}
EXAMPLE = "architecture == 'resnet18' and retrain_index <= 4 and accuracy > 0.8"
MAX_EXPRESSION_CHARS = 10_000
MAX_CONSTANTS = 500

_ORDER: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}

Constant: TypeAlias = str | int | float | None
Parameters: TypeAlias = list[Constant]


def compile_where(expression: str) -> tuple[str, Parameters]:
    """Compile the expression to an SQL condition on the table `snapshots`, and its parameters.

    A field that a snapshot lacks is None: equal only to None, and neither smaller nor larger than anything.

    Raises:
        UsageError: it is not a valid expression, or names a field that does not exist.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise _error(expression, f"expected at most {MAX_EXPRESSION_CHARS} characters, found {len(expression)}")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        parameters: Parameters = []
        sql = _Compiler(expression, parameters).condition(tree)
    except (SyntaxError, ValueError):
        raise _error(expression, f"not an expression; expected something like: {EXAMPLE}") from None
    except (RecursionError, MemoryError):
        raise _error(expression, "nested too deeply") from None
    if len(parameters) > MAX_CONSTANTS:
        raise _error(expression, f"expected at most {MAX_CONSTANTS} constants, found {len(parameters)}")
    return sql, parameters


def _error(expression: str, problem: str) -> UsageError:
    shown = expression if len(expression) <= 120 else expression[:117] + "..."
    return UsageError(f"where {shown!r}: {problem}")


Field: TypeAlias = ast.Name | ast.Attribute


class _Compiler:
    """Turns one parsed expression into SQL; constants are appended to `parameters`, in order."""

    def __init__(self, expression: str, parameters: Parameters):
        self.expression = expression
        self.parameters = parameters

    def fail(self, problem: str) -> UsageError:
        return _error(self.expression, problem)

    def condition(self, node: ast.expr) -> str:
        if isinstance(node, ast.BoolOp):
            joiner = " AND " if isinstance(node.op, ast.And) else " OR "
            return "(" + joiner.join(self.condition(value) for value in node.values) + ")"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return f"(NOT {self.condition(node.operand)})"
        if isinstance(node, ast.Compare):
            lefts = [node.left, *node.comparators]
            pairs = zip(lefts, node.ops, node.comparators, strict=False)
            return "(" + " AND ".join(self.comparison(left, op, right) for left, op, right in pairs) + ")"
        raise self.fail(f"expected comparisons joined by and, or, not; found {_shown(node)}; for example: {EXAMPLE}")

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> str:
        if not isinstance(left, Field) and type(op) in _MIRRORED:
            left, op, right = right, _MIRRORED[type(op)](), left
        if not isinstance(left, Field):
            raise self.fail(f"expected a field to compare, found {_shown(left)}; fields: {', '.join(FIELDS)}")
        column, kind = self.field(left)
        if isinstance(op, ast.In | ast.NotIn):
            sql = self.membership(column, kind, right)
            return f"(NOT {sql})" if isinstance(op, ast.NotIn) else sql
        if isinstance(op, ast.Is | ast.IsNot) and not (isinstance(right, ast.Constant) and right.value is None):
            raise self.fail(f"`is` compares with None only; use == for {_shown(right)}")
        if isinstance(right, Field):
            return self.between_fields(column, kind, op, right)
        value = self.constant(right, kind)
        if value is None and type(op) in _ORDER:
            raise self.fail("None can be compared with == and != only")
        if type(op) in _ORDER:
            return _some(column, _ORDER[type(op)], value, self.parameters)
        sql = _some(column, "IS", value, self.parameters)
        return f"(NOT {sql})" if isinstance(op, ast.NotEq | ast.IsNot) else sql

    def between_fields(self, column: str, kind: str, op: ast.cmpop, right: Field) -> str:
        other, other_kind = self.field(right)
        if "name" in (column, other) or kind != other_kind:
            raise self.fail(f"{_shown(right)} can't be compared with that field; compare it with a constant")
        if type(op) in _ORDER:
            return f"COALESCE({column} {_ORDER[type(op)]} {other}, 0)"
        return f"({column} {'IS' if isinstance(op, ast.Eq) else 'IS NOT'} {other})"

    def membership(self, column: str, kind: str, right: ast.expr) -> str:
        if not isinstance(right, ast.Tuple | ast.List | ast.Set):
            raise self.fail(f"expected a list of constants after `in`, found {_shown(right)}")
        values = [self.constant(element, kind) for element in right.elts]
        return "(" + " OR ".join([_some(column, "IS", value, self.parameters) for value in values] or ["0"]) + ")"

    def field(self, node: Field) -> tuple[str, str]:
        """Return the SQL column and the kind of a field; `metrics.NAME` is any metric of the manifest."""
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id == "metrics"):
                raise self.fail(f"unknown field {_shown(node)}; only metrics have parts, as in metrics.val_loss")
            # The attribute is a Python identifier, so it can't break out of the quotes.
            return f"json_extract(snapshots.metrics, '$.\"{node.attr}\"')", NUMBER
        name = node.id
        if name not in FIELDS:
            hint = suggest(name, FIELDS) or f"; fields: {', '.join(FIELDS)}, metrics.NAME"
            raise self.fail(f"unknown field {name!r}{hint}")
        return ("name" if name == "name" else f"snapshots.{name}"), FIELDS[name]

    def constant(self, node: ast.expr, kind: str) -> Constant:
        inner, sign = node, 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner, sign = node.operand, -1
        if not isinstance(inner, ast.Constant):
            raise self.fail(f"expected a constant such as 'resnet18' or 0.8, found {_shown(node)}")
        value = inner.value
        if value is None and sign == 1:
            return None
        if kind == TEXT and isinstance(value, str) and sign == 1:
            return value
        if kind == TEXT or isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(f"expected {'text in quotes' if kind == TEXT else 'a number'}, found {_shown(node)}")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise self.fail(f"{_shown(node)} is too large")
        return sign * value


def _some(column: str, operator: str, value: Constant, parameters: Parameters) -> str:
    """Return the SQL of `column operator value`, never NULL; if the column is `name`, one matching name is enough."""
    if column != "name":
        parameters.append(value)
        return f"COALESCE({column} {operator} ?, 0)"
    if value is None:
        return "(NOT EXISTS (SELECT 1 FROM refs WHERE refs.id = snapshots.id))"
    parameters.append(value)
    return f"EXISTS (SELECT 1 FROM refs WHERE refs.id = snapshots.id AND refs.name {operator} ?)"


def _shown(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else text[:57] + "..."
