from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["operator", "sidecar", "tests", "operator/src", "sidecar/src"])
def test_folders_that_would_hide_other_modules_are_no_packages(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists(), (
        f"{folder} must not be a package: it would hide the standard library's"
    )


def test_the_library_declares_no_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == []


@pytest.mark.parametrize("package", ["sidecar/src/ebbtide", "operator/src/ebbtide_operator"])
def test_packages_ship_their_types(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


@pytest.mark.parametrize(
    ("folders", "most"),
    [(("sidecar/src", "operator/src", "examples", "demo", "charts", "tests/localcluster"), 400), (("tests",), 600)],
)
def test_no_file_grows_out_of_its_room(folders: tuple[str, ...], most: int) -> None:
    """Tests may be longer: a table of cases is read line by line."""
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    long = {
        str(path.relative_to(ROOT)): lines for path in sources if (lines := len(path.read_text().splitlines())) > most
    }
    assert not long
