"""The API reference says what the docstrings say, for everything that is public."""

import inspect
import re

import ebbtide
from tools import api_reference


def test_it_is_up_to_date() -> None:
    assert api_reference.OUTPUT.read_text() == api_reference.render(), "run `make generate`"


def test_everything_public_is_in_it_and_documented() -> None:
    page = api_reference.render()
    sections = dict(re.findall(r"^##+ (\S+)\n\n```py\n.*?\n```\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(ebbtide.__all__) <= set(sections)
    for name in (
        "Runtime.scope",
        "Runtime.cancel",
        "Runtime.dump",
        "Scope.spawn",
        "Settings.from_env",
        "DrainMiddleware",
    ):
        assert name in sections
    assert [name for name, text in sections.items() if not text.strip()] == []


def test_what_is_left_out_exists() -> None:
    for name in api_reference.INTERNAL:
        kind, _, member = name.partition(".")
        assert hasattr(getattr(ebbtide, kind), member), name


def test_sections_become_lists_and_what_follows_them_stays_text() -> None:
    text = """Do it.

    Args:
        one: What to do,
            on two lines.
        two: How.

    Raises:
        ValueError: It cannot be done.
    """
    assert api_reference.markdown(inspect.cleandoc(text)) == (
        "Do it.\n\nArguments:\n\n- `one`: What to do, on two lines.\n- `two`: How.\n\n"
        "Raises:\n\n- `ValueError`: It cannot be done."
    )
