import io
import json
import logging
from collections.abc import Iterator

import pytest

from ebbtide_operator import logs


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("info")
    yield stream
    root.handlers[:] = before[0]
    root.setLevel(before[1])


def test_a_record_is_one_json_object_with_its_fields(stream: io.StringIO) -> None:
    logging.getLogger("x").info("drain.ended", extra={"workload": "shop/deployment/orders", "seconds": 1.5})
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["workload"]) == ("drain.ended", "info", "shop/deployment/orders")
    assert line["seconds"] == 1.5
    assert line["at"].endswith("Z")


def test_an_exception_stays_on_its_line(stream: io.StringIO) -> None:
    try:
        int("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("reconcile.failed", extra={"error": object()})
    (line,) = stream.getvalue().splitlines()
    assert "two" in json.loads(line)["exception"]


def test_libraries_are_heard_from_warnings_on(stream: io.StringIO) -> None:
    logging.getLogger("kopf.objects").info("handler succeeded")
    logging.getLogger("x").debug("detail")
    assert stream.getvalue() == ""
    logging.getLogger("kopf.objects").warning("trouble")
    assert json.loads(stream.getvalue())["event"] == "trouble"
