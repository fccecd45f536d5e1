"""Sentences that code puts together, as templates: strings and f-strings with words, expressions as numbered fields.

`of_functions` looks into functions of the framework that are named to it. `of_checks` looks into the public checks of a suite,
whose `fail`, `expect_...` and helpers say what was found; what is data there, and not said, is left out: dictionaries, constants
in capitals, texts of several lines or with a space in front, what is compared, and what is given to the submission.

Not covered: hidden checks. Of them a student reads the docstring only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Set
from pathlib import Path

__all__ = ["of_checks", "of_functions"]

WORDS = re.compile(r"[A-Za-z]{2,}[ ,].*[a-z]{2}|^[a-z]+ \{0\}$", re.DOTALL)
FEW_WORDS = re.compile(r"(^|\s)[\"'(]?[A-Za-z]*[a-z]{2}[\"'.,;?!)]*(\s|$)|\s\{\d\}|\{\d\}:?\s")
"""In a text with a space: a word that is no part of a name, or a field that stands alone."""
CODE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
REQUEST = re.compile(r"[A-Z]+ /\S*$")
EXPECTATIONS = {"expect_equal", "expect_close", "expect_type"}
"""Functions of `autograder.checks` whose first two arguments are values."""


def of_functions(path: Path, functions: Set[str], marked: Set[str]) -> Iterator[str]:
    """Templates in these functions of a module, "" for its constants; but for what `marked` functions are given."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in functions:
            nodes.append(node)
    if "" in functions:
        nodes += [node.value for node in tree.body if isinstance(node, ast.Assign)]
    for found in dict.fromkeys(text for node in nodes for text in _texts(node, marked)):
        if WORDS.search(found):
            yield found


def of_checks(path: Path) -> Iterator[str]:
    """Templates of what the checks in this file say. A comma at the end is left out: it is said with and without it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = dict.fromkeys(text.rstrip(",") for text in _texts(tree, frozenset(), checks=True))
    return (text for text in found if _is_said(text))


def _is_said(text: str) -> bool:
    if "\n" in text or text.startswith(" ") or REQUEST.match(text):
        return False
    return bool(WORDS.search(text) or (" " in CODE.sub("", text).strip() and FEW_WORDS.search(text)))


def _texts(node: ast.AST, marked: Set[str], *, checks: bool = False) -> Iterator[str]:
    """Texts in a piece of code, in order, without docstrings; f-strings whole, then what stands in their expressions."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield _template(node)
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                yield from _texts(value.value, marked, checks=checks)
    elif isinstance(node, ast.Compare) or (isinstance(node, ast.Call) and getattr(node.func, "id", "") in marked):
        return  # looked at, or marked already
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    else:
        for child in _saying(node) if checks else ast.iter_child_nodes(node):
            yield from _texts(child, marked, checks=checks)


def _saying(node: ast.AST) -> list[ast.AST]:
    """The parts of a piece of code of a check that can hold what it says."""
    if isinstance(node, ast.Dict) or (isinstance(node, ast.Assign) and _is_constant(node)):
        return []
    if not isinstance(node, ast.Call):
        return list(ast.iter_child_nodes(node))
    if _root(node) == "submission":
        return []
    values = 2 if getattr(node.func, "id", "") in EXPECTATIONS else 0
    given = [each for number, each in enumerate(node.args) if number >= values or not isinstance(each, ast.Constant)]
    return [node.func, *given, *(each.value for each in node.keywords if each.arg != "value")]


def _is_constant(node: ast.Assign) -> bool:
    return all(isinstance(target, ast.Name) and target.id.isupper() for target in node.targets)


def _root(node: ast.expr) -> str:
    """The name that an expression such as a.b(c).d begins with."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def _template(node: ast.JoinedStr) -> str:
    """An f-string with numbers for expressions. Two in a row are one: nobody could tell where one ends."""
    text, number, before = "", 0, False
    for value in node.values:
        if isinstance(value, ast.Constant):
            text += str(value.value)
        elif not before:
            text += f"{{{number}}}"
            number += 1
        before = isinstance(value, ast.FormattedValue)
    return text
