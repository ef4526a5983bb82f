"""The table of values in the chart's README, made from the comments of values.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent / "ebbtide"
VALUES = CHART / "values.yaml"
README = CHART / "README.md"
BEGIN = "<!-- values: made from values.yaml by `make generate` -->\n"
END = "<!-- end of values -->\n"
_MARK = "# -- "


@dataclass(frozen=True, slots=True)
class Value:
    """One row: a key with a comment that begins with `--`, and everything below it."""

    path: str
    default: str
    text: str


def render() -> str:
    """Return the README with a fresh table.

    Raises:
        ValueError: The README has lost its marks, or a value has no comment.
    """
    text = README.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md: needs the lines {BEGIN.strip()!r} and {END.strip()!r}")
    rows = [f"| `{value.path}` | `{value.default}` | {value.text} |" for value in values()]
    table = "\n".join(["| value | default | what it is |", "| --- | --- | --- |", *rows])
    return f"{before}{BEGIN}\n{table}\n\n{END}{after}"


def values(source: str | None = None) -> list[Value]:
    """Return every value of values.yaml in its order.

    Raises:
        ValueError: A value has no comment that begins with `--`.
    """
    text = VALUES.read_text() if source is None else source
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise TypeError("values.yaml: must be a mapping")
    return list(_walk(root, (), text.splitlines()))


def _walk(node: yaml.MappingNode, above: tuple[str, ...], lines: list[str]) -> Iterator[Value]:
    for key, child in node.value:
        path = (*above, key.value)
        comment = _comment(lines, key.start_mark.line)
        if comment:
            default = yaml.safe_load(yaml.serialize(child))
            yield Value(".".join(path), json.dumps(default, separators=(", ", ": ")), comment)
        elif isinstance(child, yaml.MappingNode) and child.value:
            yield from _walk(child, path, lines)
        else:
            raise ValueError(f"values.yaml: {'.'.join(path)}: needs a comment that begins with '{_MARK}'")


def _comment(lines: list[str], line: int) -> str:
    """Return the text of the comment right above a line; empty where it does not begin with `--`."""
    block: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        block.insert(0, lines[line].strip())
        if block[0].startswith(_MARK):
            return " ".join([block[0].removeprefix(_MARK), *(text.removeprefix("#").strip() for text in block[1:])])
    return ""
