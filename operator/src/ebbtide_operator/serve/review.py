"""AdmissionReview (admission.k8s.io/v1): the question in, the answer out. Pure."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

API_VERSION = "admission.k8s.io/v1"

Document = Mapping[str, Any]


class ReviewError(ValueError):
    """A request body is no AdmissionReview that can be answered: names the field."""


@dataclass(frozen=True, slots=True)
class Review:
    """What the API server asks about one object."""

    uid: str
    namespace: str
    user: str
    object: Document
    """The object that would be created; empty for a deletion."""
    old_object: Document
    """The object that would be deleted; empty for a creation."""
    options: Document
    dry_run: bool


def decode(body: bytes) -> Review:
    """Read an AdmissionReview.

    Raises:
        ReviewError: There is not even a request to answer.
    """
    try:
        document = json.loads(body)
    except ValueError as error:
        raise ReviewError(f"AdmissionReview: not JSON: {error}") from error
    request = document.get("request") if isinstance(document, dict) else None
    if not isinstance(request, dict):
        raise ReviewError("AdmissionReview: request: must be an object")
    uid = request.get("uid")
    if not isinstance(uid, str) or not uid:
        raise ReviewError("AdmissionReview: request.uid: must be a text")
    return Review(
        uid=uid,
        namespace=str(request.get("namespace") or ""),
        user=str(_object(request, "userInfo").get("username", "")),
        object=_object(request, "object"),
        old_object=_object(request, "oldObject"),
        options=_object(request, "options"),
        dry_run=request.get("dryRun") is True,
    )


def allow(uid: str, operations: Sequence[Document] = ()) -> Document:
    """Return the answer that lets a request pass, changed by JSON patch operations."""
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if operations:
        response["patchType"] = "JSONPatch"
        response["patch"] = b64encode(json.dumps(list(operations)).encode()).decode()
    return _answer(response)


def deny(uid: str, code: int, message: str) -> Document:
    """Return the answer that refuses a request with an HTTP status, which its client sees."""
    status: dict[str, Any] = {"status": "Failure", "code": code, "message": message}
    if code == 429:
        status["reason"] = "TooManyRequests"
    return _answer({"uid": uid, "allowed": False, "status": status})


def _answer(response: Document) -> Document:
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}


def _object(request: Document, field: str) -> Document:
    value = request.get(field)
    return value if isinstance(value, dict) else {}
