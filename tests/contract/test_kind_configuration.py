"""kind's own loader reads the repository's configuration, and refuses what is wrong in it."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.localcluster import binaries, kind
from tests.localcluster.layout import Layout, Spec


def _validate(file: Path) -> subprocess.CompletedProcess[str]:
    command = [str(binaries.path("kind-validate")), str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_kind_accepts_the_repositorys_configuration() -> None:
    done = _validate(kind.CONFIGURATION)
    assert done.returncode == 0, done.stderr


def test_kind_accepts_what_the_adapter_makes_of_it(tmp_path: Path) -> None:
    file = yaml.safe_load(kind.CONFIGURATION.read_text())
    adapted = kind.configuration(file, Spec("other", nodes=4), Layout(tmp_path), "my/node:v1.36.9")
    written = tmp_path / "kind-config.yaml"
    written.write_text(yaml.safe_dump(adapted))
    done = _validate(written)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("nodes:", "nodez:", "field nodez not found"),
        ("image:", "images:", "field images not found"),
        ("role: worker", "role: wroker", '"wroker"; use control-plane or worker'),
        ("role: control-plane", "role: worker", "no node has the role control-plane"),
        ("v1alpha4", "v1alpha9", "unknown apiVersion"),
        ("kind: Cluster", "kind: Clutser", "unknown kind Clutser"),
        ("name: ebbtide", "networking: {podSubnet: 10.0.0.0}", "networking.podSubnet"),
    ],
)
def test_kind_refuses_what_is_wrong(tmp_path: Path, right: str, wrong: str, said: str) -> None:
    text = kind.CONFIGURATION.read_text()
    assert right in text
    file = tmp_path / "kind-config.yaml"
    file.write_text(text.replace(right, wrong))
    done = _validate(file)
    assert done.returncode == 1
    assert said in done.stderr
