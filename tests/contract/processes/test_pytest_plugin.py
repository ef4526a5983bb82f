"""The plugin, in a pytest of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

TESTS = textwrap.dedent("""
    import asyncio
    import pytest

    async def forgotten():
        await asyncio.sleep(3600)

    @pytest.mark.no_task_leaks
    async def test_leaks():
        asyncio.get_running_loop().keep = asyncio.create_task(forgotten(), name="forgotten")

    @pytest.mark.no_task_leaks
    async def test_cleans_up():
        task = asyncio.create_task(forgotten())
        await asyncio.sleep(0)
        task.cancel()

    @pytest.mark.no_task_leaks(ignore=["back*"])
    async def test_may_leave_that_one():
        asyncio.get_running_loop().keep = asyncio.create_task(forgotten(), name="background")

    @pytest.mark.no_task_leaks
    async def test_fails_by_itself():
        asyncio.get_running_loop().keep = asyncio.create_task(forgotten())
        assert False, "its own reason"

    async def test_is_not_asked():
        asyncio.get_running_loop().keep = asyncio.create_task(forgotten(), name="unasked")
""")


def run(folder: Path, tests: str, *options: str) -> str:
    folder.joinpath("test_it.py").write_text(tests)
    folder.joinpath("pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    command = [sys.executable, "-m", "pytest", "-p", "ebbtide.pytest_plugin", "-p", "no:cacheprovider", *options]
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ran = subprocess.run(
        [*command, "-p", "pytest_asyncio.plugin", "--strict-markers", "-rA", "."],
        cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return ran.stdout + ran.stderr


def test_a_test_that_leaves_tasks_behind_fails_with_their_names_and_places(tmp_path: Path) -> None:
    out = run(tmp_path, TESTS)
    assert "2 failed, 3 passed" in out, out
    assert "the test left 1 tasks behind:" in out
    assert "forgotten: waits at" in out
    assert "test_it.py:6 in forgotten" in out
    assert "test_it.py:10 in test_leaks" in out, "where it was created"
    assert "its own reason" in out


def test_every_test_is_asked_where_the_configuration_says_so(tmp_path: Path) -> None:
    out = run(tmp_path, TESTS, "-o", "no_task_leaks=true")
    assert "3 failed, 2 passed" in out
    assert "test_it.py:28 in test_is_not_asked" in out


def test_each_example_of_a_property_is_asked(tmp_path: Path) -> None:
    tests = textwrap.dedent("""
        import asyncio
        import pytest
        from hypothesis import given, settings, strategies as st

        async def forgotten():
            await asyncio.sleep(3600)

        @MARK
        @settings(max_examples=5, database=None, deadline=None)
        @given(number=st.integers(0, 9))
        @pytest.mark.parametrize("leaks", [False, True])
        async def test_leaks(leaks, number):
            if leaks:
                asyncio.get_running_loop().keep = asyncio.create_task(forgotten(), name="forgotten")

        class TestOrders:
            @MARK
            @settings(max_examples=5, database=None)
            @given(number=st.integers(0, 9))
            async def test_cleans_up(self, number):
                await asyncio.create_task(asyncio.sleep(0))
    """)
    marked = tests.replace("@MARK", "@pytest.mark.no_task_leaks(within_s=0.01)")
    unmarked = tests.replace("@MARK", "@pytest.mark.asyncio")
    for out in (
        run(tmp_path, marked, "-p", "_hypothesis_pytestplugin"),
        run(tmp_path, unmarked, "-p", "_hypothesis_pytestplugin", "-o", "no_task_leaks=true"),
    ):
        assert "1 failed, 2 passed" in out, out
        assert "the test left 1 tasks behind:" in out
        assert "forgotten: waits at" in out


def test_a_mark_that_would_do_nothing_is_an_error(tmp_path: Path) -> None:
    out = run(tmp_path, "import pytest\n\n@pytest.mark.no_task_leaks\ndef test_it(): pass\n")
    assert "no_task_leaks is for coroutine tests" in out


def test_the_library_does_not_load_the_plugin() -> None:
    code = "import ebbtide, sys; assert 'pytest' not in sys.modules and 'ebbtide.pytest_plugin' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
