"""Makes docs/library/api.md from the library's docstrings: `python -m tools.api_reference`, or `--check` to compare.

Source text is read rather than objects alone: what stands below a field documents it, and only the source has that.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import ebbtide
import ebbtide.asgi

REPOSITORY = Path(__file__).resolve().parent.parent
OUTPUT = REPOSITORY / "docs/library/api.md"

_HEAD = """\
<!-- Made from docstrings by `make generate`: edit those. -->

# API reference

All of this is imported from `ebbtide`, or from `ebbtide.asgi` where that is said, and nothing else is promised to stay.
Durations and ages are seconds. Call it in the event loop's thread, except where it says "from any thread".
"""
INTERNAL = {
    "Entry.__init__",
    "Group.__init__",
    "Scope.__init__",
    *(f"Scope.{name}" for name in ("enter", "end", "task_ended", "crashed", "shed_oldest")),
}
"""What other modules of the library call, and nobody else."""
LONGEST = 80
"""Characters of arguments that stand on one line."""

_SECTIONS = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Raises", "Returns": "Returns"}
_SECTION = re.compile(rf"^({'|'.join(_SECTIONS)}):$", re.MULTILINE)
_ITEM = re.compile(r"^(?=\S)", re.MULTILINE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def render() -> str:
    """Return the page."""
    pages = [(module, _names(module)) for module in (ebbtide, ebbtide.asgi)]
    index = " · ".join(f"[{name}](#{name.lower()})" for _, names in pages for name in names)
    entries = [line for module, names in pages for name in names for line in _entry(name, getattr(module, name))]
    return "\n".join([_HEAD, index, *entries]) + "\n"


def _names(module: ModuleType) -> list[str]:
    """Return what a module promises, classes first; constants are told where they are used."""
    named = {name: getattr(module, name) for name in module.__all__}
    told = [name for name, thing in named.items() if inspect.isclass(thing) or inspect.isfunction(thing)]
    return sorted(told, key=lambda name: (not inspect.isclass(named[name]), name.lower()))


def markdown(docstring: str) -> str:
    """Return a docstring with its sections as lists."""
    text = inspect.cleandoc(docstring).replace("```python\n", "```py\n")
    before, *sections = _SECTION.split(text)
    parts = [before.strip()]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        # What follows a section without indentation is text again.
        inside, outside = _indented(body)
        items = [" ".join(item.split()) for item in _ITEM.split(textwrap.dedent(inside)) if item.strip()]
        named = title != "Returns"
        parts.append(
            "\n".join([f"{_SECTIONS[title]}:", "", *(f"- {_item(item) if named else item}" for item in items)])
        )
        parts.append(outside)
    return "\n\n".join(part for part in parts if part)


def _indented(body: str) -> tuple[str, str]:
    lines = body.strip("\n").split("\n")
    end = next((at for at, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return "\n".join(lines[:end]), "\n".join(lines[end:]).strip()


def _item(text: str) -> str:
    name, colon, rest = text.partition(": ")
    return f"`{name}`{colon}{rest}"


def _entry(name: str, documented: Any) -> Iterator[str]:
    yield f"\n## {name}\n"
    node = _node(documented)
    if isinstance(node, ast.ClassDef):
        yield from _class(name, documented, node)
    else:
        yield from _described(f"{_signature(node)}", node)


def _class(name: str, documented: type, node: ast.ClassDef) -> Iterator[str]:
    # What the library inherits from itself is part of the class; what Python gives to all classes is not.
    nodes = [node, *(_node(base) for base in documented.__mro__[1:] if _is_own(base) and not _is_listed(base))]
    members = [member for each in nodes if isinstance(each, ast.ClassDef) for member in each.body]
    functions = {member.name: member for member in reversed(members) if isinstance(member, Function)}
    made = None if f"{name}.__init__" in INTERNAL else functions.get("__init__")
    bases = ", ".join(ast.unparse(base) for base in node.bases if _is_said(base))
    lines = ["# from ebbtide.asgi"] if documented.__module__.startswith(ebbtide.asgi.__name__) else []
    lines += [f"class {name}{f'({bases})' if bases else ''}{_arguments(made) if made else ''}"]
    lines += [f"    {ast.unparse(member)}" for member in members if _is_field(member)]
    yield from _described("\n".join(lines), node)
    fields = list(_documented(members))
    if fields:
        yield "\n".join(["", *fields])
    for member in members:
        if isinstance(member, Function) and _is_public(name, member):
            yield f"\n### {name}.{member.name}\n"
            yield from _described(_signature(member), member)


def _is_field(member: ast.stmt) -> bool:
    match member:
        case ast.AnnAssign(target=ast.Name(id=field)) | ast.Assign(targets=[ast.Name(id=field)], value=ast.Constant()):
            return not field.startswith("_")
        case _:
            return False


def _documented(members: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield fields that have their text below them."""
    for member, below in pairwise(members):
        match member, below:
            case (
                ast.AnnAssign(target=ast.Name(id=field)) | ast.Assign(targets=[ast.Name(id=field)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ) if _is_field(member):
                yield f"- `{field}`: {' '.join(text.split())}"
            case _:
                pass


def _described(code: str, node: ast.ClassDef | Function) -> Iterator[str]:
    yield f"```py\n{code}\n```"
    if docstring := ast.get_docstring(node):
        yield f"\n{markdown(docstring)}"


def _signature(node: Function) -> str:
    kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    if "property" in _decorators(node):
        return f"{node.name}: {ast.unparse(node.returns) if node.returns else ''}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    above = "".join(f"@{name}\n" for name in ("classmethod", "staticmethod") if name in _decorators(node))
    return f"{above}{kind} {node.name}{_arguments(node)}{returns}"


def _arguments(node: Function) -> str:
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(positional) - len(given.defaults)), *given.defaults]
    pieces = [_argument(*pair) for pair in zip(positional, defaults, strict=True) if pair[0].arg not in {"self", "cls"}]
    if given.vararg or given.kwonlyargs:
        pieces.append(f"*{_argument(given.vararg, None)}" if given.vararg else "*")
    pieces += map(_argument, given.kwonlyargs, given.kw_defaults)
    if given.kwarg:
        pieces.append(f"**{_argument(given.kwarg, None)}")
    line = ", ".join(pieces)
    if len(line) <= LONGEST:
        return f"({line})"
    return "".join(["(\n", *(f"    {piece},\n" for piece in pieces), ")"])


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")


def _node(documented: Any) -> ast.ClassDef | Function:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(documented))).body
    assert isinstance(node, ast.ClassDef | Function)
    return node


def _is_own(kind: type) -> bool:
    return kind.__module__.startswith("ebbtide")


def _is_listed(kind: type) -> bool:
    return kind.__name__ in ebbtide.__all__


def _is_said(base: ast.expr) -> bool:
    return not isinstance(base, ast.Name) or base.id not in {"Oversight", "Parent"}


def _decorators(node: Function) -> set[str]:
    return {decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)}


def _is_public(of: str, node: Function) -> bool:
    # The setter of a property is the property again.
    is_setter = any(isinstance(decorator, ast.Attribute) for decorator in node.decorator_list)
    return not (node.name.startswith("_") or is_setter or f"{of}.{node.name}" in INTERNAL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    check = parser.parse_args().check
    if OUTPUT.exists() and OUTPUT.read_text() == render():
        return 0
    if not check:
        OUTPUT.write_text(render())
    sys.stdout.write(f"{'out of date' if check else 'written'}: {OUTPUT.relative_to(REPOSITORY)}\n")
    return int(check)


if __name__ == "__main__":
    sys.exit(main())
