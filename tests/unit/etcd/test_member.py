"""The etcd that tests start may be an old one."""

from tests.contract.member import fitting

FLAGS = ["--name=a", "--unsafe-no-fsync", "--watch-progress-notify-interval=1s"]


def test_a_current_etcd_gets_its_flags_as_they_are() -> None:
    assert fitting((3, 5), FLAGS) == FLAGS


def test_an_old_one_gets_what_it_knows_by_the_name_it_knows() -> None:
    assert fitting((3, 4), FLAGS) == ["--name=a", "--experimental-watch-progress-notify-interval=1s"]
