from pathlib import Path

from tests.localcluster import cgroups

UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """\
24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
26 24 0:24 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
27 24 0:25 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
28 24 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
29 24 0:24 / /elsewhere rw,relatime - cgroup cgroup rw,memory
"""


def test_finds_the_one_hierarchy_of_version_2() -> None:
    (found,) = cgroups.hierarchies(UNIFIED)
    assert found.unified
    assert found.mount_point == Path("/sys/fs/cgroup")


def test_finds_every_hierarchy_of_a_hybrid_machine_once() -> None:
    found = cgroups.hierarchies(HYBRID)
    assert [hierarchy.mount_point.name for hierarchy in found] == ["cpuset", "memory", "systemd", "unified"]
    assert [hierarchy.unified for hierarchy in found] == [False, False, False, True]
    assert "cpuset" in found[0].controllers
    assert "name=systemd" in found[2].controllers
