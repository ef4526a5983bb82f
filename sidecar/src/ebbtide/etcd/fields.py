"""Typed access to the fields of the gateway's JSON, and how they are spelled: shared by every request and answer."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any


class WireError(ValueError):
    """A request or an answer does not follow the gateway's conventions; names the field."""


def parse(body: bytes) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise WireError(f"must be an object, not {type(document).__name__}")
    return document


def dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def nested(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name, {})
    if not isinstance(value, dict):
        raise WireError(f"{name}: must be an object, not {type(value).__name__}")
    return value


def objects(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = document.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise WireError(f"{name}: must be a list of objects")
    return value


def integer(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name, 0)
    try:
        if isinstance(value, str) or type(value) is int:
            return int(value)
    except ValueError as error:
        raise WireError(f"{name}: must be a 64-bit integer, not {value!r}") from error
    raise WireError(f"{name}: must be a 64-bit integer, not {value!r}")


def flag(document: Mapping[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if not isinstance(value, bool):
        raise WireError(f"{name}: must be true or false, not {value!r}")
    return value


def string(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name, "")
    if not isinstance(value, str):
        raise WireError(f"{name}: must be a string, not {value!r}")
    return value


def data(document: Mapping[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(string(document, name), validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"{name}: not base64: {error}") from error


def key(document: Mapping[str, Any], name: str = "key") -> str:
    """Read a key; bytes that are not UTF-8 survive as surrogates, so that the key can be written back."""
    return data(document, name).decode(errors="surrogateescape")


def text(value: bytes | str) -> str:
    """Spell a key or a value in base64."""
    raw = value.encode(errors="surrogateescape") if isinstance(value, str) else value
    return base64.b64encode(raw).decode("ascii")
