"""The smallest program that can be a first process, and the sandbox image made of it."""

import functools
import subprocess
import tempfile
from pathlib import Path

from tests.localcluster import archives
from tests.localcluster.binaries import SOURCES, cache_root, content_hash
from tests.localcluster.configuration import PAUSE_IMAGE
from tests.localcluster.errors import ClusterError

_SOURCE = SOURCES / "pause" / "pause.c"
_COMPILE = ("gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror")


def executable() -> Path:
    """Return the compiled program."""
    return _folder() / "pause"


def image() -> Path:
    """Return the image archive of it."""
    return _folder() / "pause.tar"


@functools.cache
def _folder() -> Path:
    target = cache_root() / f"pause-{content_hash([_SOURCE, Path(archives.__file__)], *_COMPILE, PAUSE_IMAGE)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        output = Path(temporary) / "out"
        output.mkdir()
        program = output / "pause"
        done = subprocess.run(
            [*_COMPILE, "-o", str(program), str(_SOURCE)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ClusterError(f"compiling {_SOURCE.name} failed:\n{done.stderr}")
        content = archives.render(
            PAUSE_IMAGE,
            {"pause": (program.read_bytes(), 0o755)},
            {"Entrypoint": ["/pause"], "User": "65535:65535"},
        )
        (output / "pause.tar").write_bytes(content)
        try:
            output.rename(target)
        except OSError:
            # Another process was faster; its result is the same.
            if not target.is_dir():
                raise
    return target
