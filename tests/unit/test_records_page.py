"""docs/records.md is what tools that read the history are written from: it is what the code does."""

import dataclasses
import json
import re
from pathlib import Path

from ebbtide.protocol import TASK_OUTCOMES, DrainRecord, Outcome
from ebbtide_operator.store import drain_state

PAGE = Path(__file__).parents[2].joinpath("docs/records.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGE, re.MULTILINE))
TYPES = {
    "str": "string",
    "float": "number",
    "int": "integer",
    "Outcome": "string",
    "Mapping[str, int]": "object of integers",
    "Mapping[str, Any] | None": "object or null",
}


def test_the_page_has_every_field_with_its_type_and_no_other() -> None:
    fields = {spec.name: TYPES[str(spec.type)] for spec in dataclasses.fields(DrainRecord) if spec.name != "extra"}
    outcomes = {str(one) for one in Outcome}
    assert {name: kind for name, kind in ROWS.items() if name not in outcomes} == fields | {"v": "integer"}


def test_the_page_says_which_fields_may_be_missing() -> None:
    for spec in dataclasses.fields(DrainRecord):
        needed = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if spec.name != "extra":
            default = re.search(rf"^\| `{spec.name}` \| [^|]+ \|([^|]*)\|", PAGE, re.MULTILINE)
            assert default is not None
            assert (default[1].strip() == "") == needed, spec.name


def test_the_page_has_every_outcome_of_drains_and_tasks() -> None:
    assert all(f"| `{outcome}` |" in PAGE for outcome in Outcome)
    assert all(f"`{outcome}`" in PAGE for outcome in TASK_OUTCOMES)


def test_the_example_is_a_record() -> None:
    (example,) = re.findall(r"^\{.*\}$", PAGE, re.MULTILINE)
    assert DrainRecord.decode(example.encode()).encode() == example.encode()
    assert json.loads(example).keys() == {spec.name for spec in dataclasses.fields(DrainRecord)} - {"extra"} | {"v"}


def test_the_bounds_are_those_of_the_code() -> None:
    assert f"At most {drain_state.RECORDS_PER_WORKLOAD} for each workload" in PAGE
    assert f"{drain_state.RECORDS_IN_ALL:,} in all" in PAGE
    assert f"and {drain_state.RECORDS_AGE_S / 86400:.0f} days" in PAGE
    assert f"at most {drain_state.MOST_DELETIONS} at a time" in PAGE
