"""docs/protocol.md is what clients in other languages are written from: it names everything."""

import dataclasses
from pathlib import Path

import pytest

from ebbtide import protocol

PAGE = Path(__file__).parents[2].joinpath("docs/protocol.md").read_text()
RECORDS = (
    protocol.Order,
    protocol.Report,
    protocol.Phase,
    protocol.Request,
    protocol.Leader,
    protocol.DrainRecord,
)
ENUMS = (protocol.Desired, protocol.PodState, protocol.RolloutPhase, protocol.Outcome)


@pytest.mark.parametrize(
    "name",
    [
        *(field.name for record in RECORDS for field in dataclasses.fields(record) if field.name != "extra"),
        *(str(value) for enum in ENUMS for value in enum),
        *protocol.TASK_OUTCOMES,
    ],
)
def test_the_page_names_every_field_and_value(name: str) -> None:
    assert f"`{name}`" in PAGE
