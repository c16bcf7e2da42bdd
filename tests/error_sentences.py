"""Reads from the source which sentences it raises or warns with; what a sentence fills in becomes `FILLED`."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

FILLED = "…"

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def error_sentences(folder: Path) -> dict[str, list[Place]]:
    """Return the sentences of all Python files below a folder, and the places that raise each of them."""
    return Source(
        {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.py"))}
    ).sentences()


class Place(NamedTuple):
    """A line of a module, and the function around it, "" outside of any."""

    module: str
    line: int
    function: str


class Source:
    """Modules by name, and what their expressions can say.

    A sentence is a text, a sum of texts, a variable, or what a function of one of the modules returns. A variable that
    is set to several texts makes several sentences. What cannot be followed, a parameter for example, is `FILLED`.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        self.modules = {name: ast.parse(text) for name, text in modules.items()}
        self.above: dict[ast.AST, ast.AST] = {}
        self.functions: dict[str, list[Function]] = {}
        for tree in self.modules.values():
            for node in ast.walk(tree):
                self.above |= dict.fromkeys(ast.iter_child_nodes(node), node)
                if isinstance(node, FUNCTIONS):
                    self.functions.setdefault(node.name, []).append(node)
        self.calls: dict[Function, list[ast.Call]] = defaultdict(list)
        for node in list(self.above):
            if isinstance(node, ast.Call) and (helper := self.called(node)) is not None:
                self.calls[helper].append(node)

    def sentences(self) -> dict[str, list[Place]]:
        found: dict[str, list[Place]] = defaultdict(list)
        for module, tree in self.modules.items():
            for node in ast.walk(tree):
                said: set[str] = set()
                if isinstance(node, ast.Raise) and node.exc is not None:
                    said = self.of_error(node.exc)
                elif isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
                    said = self.texts(node.args[0])
                for sentence in said:
                    found[sentence].append(Place(module, node.lineno, getattr(self.around(node)[0], "name", "")))
        return dict(found)

    def of_error(self, error: ast.expr) -> set[str]:
        """Return the sentences of an error, which may be in a variable or come from a function."""
        if isinstance(error, ast.Name):
            made, _ = self.set_to(error)
        elif isinstance(error, ast.Call) and (helper := self.called(error)) is not None:
            made = returned(helper)
        else:
            values = [*error.args, *(given.value for given in error.keywords)] if isinstance(error, ast.Call) else []
            texts = [value for value in values if not isinstance(value, ast.Constant) or isinstance(value.value, str)]
            return set().union(*map(self.texts, texts))
        return set().union(*map(self.of_error, made))

    def called(self, call: ast.Call) -> Function | None:
        """Return the function of these modules that is called, that of the same module before others of its name."""
        own = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("self", "cls")
        if not own and not isinstance(call.func, ast.Name):
            return None
        found = self.functions.get(call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id, [])
        here = self.around(call)[-1]
        return next((each for each in found if self.around(each)[-1] is here), found[0] if found else None)

    def around(self, node: ast.AST) -> list[ast.AST]:
        """Return the functions around a node, from the inside, and the module at the end."""
        found = []
        while above := self.above.get(node):
            node = above
            if isinstance(node, (*FUNCTIONS, ast.Module)):
                found.append(node)
        return found

    def texts(self, node: ast.expr, seen: frozenset[object] = frozenset()) -> set[str]:
        """Return all texts that an expression can be; `seen` has the variables and functions that led to it."""
        match node:
            case ast.Constant(value=str(text)):
                return {text}
            case ast.JoinedStr(values=parts):
                return self.joined(parts, seen)
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                return self.texts(value, seen)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self.joined([left, right], seen)
            case ast.IfExp(body=first, orelse=second):
                return self.texts(first, seen) | self.texts(second, seen)
            case ast.Name():
                return self.of_variable(node, seen)
            case ast.Call() if (helper := self.called(node)) is not None and helper not in seen:
                return set().union(*(self.texts(value, seen | {helper}) for value in returned(helper))) or {FILLED}
        return {FILLED}

    def passed(self, function: Function, parameter: str) -> list[ast.expr]:
        """Return what is given for a parameter wherever a function is called."""
        order = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]
        if order[:1] in (["self"], ["cls"]):
            del order[0]
        given = []
        for call in self.calls[function]:
            given += [value for name, value in zip(order, call.args, strict=False) if name == parameter]
            given += [keyword.value for keyword in call.keywords if keyword.arg == parameter]
        return given

    def joined(self, parts: Iterable[ast.expr], seen: frozenset[object]) -> set[str]:
        whole = map("".join, product(*(self.texts(part, seen) for part in parts)))
        return {re.sub(f"{FILLED}+", FILLED, text) for text in whole}

    def of_variable(self, name: ast.Name, seen: frozenset[object]) -> set[str]:
        """Return the texts of a variable, and of what is added to them."""
        place = self.home(name)
        if (place, name.id) in seen:
            return {FILLED}
        seen |= {(place, name.id)}
        values, added = self.set_to(name)
        found = set().union(*(self.texts(value, seen) for value in values)) or {FILLED}
        return found | {text + more for text in found for value in added for more in self.texts(value, seen)}

    def home(self, name: ast.Name) -> ast.AST | None:
        """Return the nearest function that sets a variable, or else the module if it does, or else one that does."""
        places = [*self.around(name), *self.modules.values()]
        return next((place for place in places if name.id in bound(place)), None)

    def set_to(self, name: ast.Name) -> tuple[list[ast.expr], list[ast.expr]]:
        """Return what a variable is set to, by callers too if it is a parameter, and what is added to it."""
        place = self.home(name)
        if place is None:
            return [], []
        values, added = assigned(place, name.id)
        return values + (self.passed(place, name.id) if isinstance(place, FUNCTIONS) else []), added


def returned(function: ast.AST) -> list[ast.expr]:
    """Return what a function returns, without None."""
    values = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
    return [value for value in values if not (isinstance(value, ast.Constant) and value.value is None)]


def inside(place: ast.AST) -> Iterator[ast.AST]:
    """Yield what is in a function or module, without the functions and classes that are in it."""
    for child in ast.iter_child_nodes(place):
        if not isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            yield child
            yield from inside(child)


@cache
def bound(place: ast.AST) -> set[str]:
    """Return the variables that a function or module sets, in whatever way."""
    found = set()
    for node in inside(place):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                found.add(name)
    return found


def assigned(place: ast.AST, name: str) -> tuple[list[ast.expr], list[ast.expr]]:
    """Return what a variable is set to in a function or module, and what is added to it."""
    values, added = [], []
    for node in inside(place):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=target)], value=value)
                | ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value)
                | ast.NamedExpr(target=ast.Name(id=target), value=value)
            ) if target == name:
                values.append(value)
            case ast.AugAssign(target=ast.Name(id=target), op=ast.Add(), value=value) if target == name:
                added.append(value)
    return values, added
