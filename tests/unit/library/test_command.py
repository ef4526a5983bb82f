"""`python -m ebbtide`, as somebody in the container calls it."""

import asyncio
import json

import pytest

from ebbtide.__main__ import main
from ebbtide.protocol import PodState
from tests.unit.library.runtimes import a_runtime, until


async def test_the_report_of_a_drain_is_printed_once_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_runtime() as runtime:
        monkeypatch.setenv("EBBTIDE_ADMIN_ADDRESS", f"127.0.0.1:{runtime.admin_port}")
        assert await asyncio.to_thread(main, ["report"]) == 1
        assert capsys.readouterr().out == "no drain has begun in this process\n"
        runtime.drain("by hand", leave=False)
        await until(lambda: runtime.state is PodState.DRAINED)
        assert await asyncio.to_thread(main, ["report"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["outcome"], shown["reason"]) == ("clean", "api: by hand")
        assert await asyncio.to_thread(main, ["undrain"]) == 0
        assert runtime.ready


def test_nobody_there_is_told_apart_from_a_refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EBBTIDE_ADMIN_ADDRESS", "127.0.0.1:1")
    assert main(["status"]) == 2
    assert "nobody answers at 127.0.0.1:1" in capsys.readouterr().err
