import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide import environment
from ebbtide.lifecycle.machine import Durations
from ebbtide.settings import Settings
from ebbtide.tasks.limits import Limits
from ebbtide.workers.place import Place

DEFAULT = Settings().durations
VARIABLES = [
    name for name in vars(environment) if name.isupper() and str(vars(environment)[name]).startswith("EBBTIDE_")
]


def test_an_empty_environment_is_a_process_outside_kubernetes() -> None:
    settings = Settings.from_env({})
    assert settings == Settings(durations=Durations(0.0, DEFAULT.drain_timeout_s, DEFAULT.cancel_grace_s))
    assert not settings.has_store
    assert settings.problems == ()


def test_intake_stays_open_for_endpoints_only_where_there_are_endpoints() -> None:
    assert Settings.from_env({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).durations == DEFAULT
    assert Settings.from_env({environment.QUIESCE: "3"}).durations.quiesce_s == 3


def test_endpoints_without_a_pod_to_report_on_are_a_problem() -> None:
    (problem,) = Settings.from_env({environment.ENDPOINTS: "https://ebbtide:443"}).problems
    assert environment.POD_UID in problem


@given(st.dictionaries(st.sampled_from([vars(environment)[name] for name in VARIABLES]), st.text(max_size=30)))
def test_no_environment_keeps_an_application_from_starting(environ: dict[str, str]) -> None:
    settings = Settings.from_env(environ)
    assert settings.durations.budget_s >= 0
    assert 0 <= settings.admin_port < 65536


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (environment.DRAIN_TIMEOUT, "soon"),
        (environment.DRAIN_TIMEOUT, "-1"),
        (environment.DRAIN_TIMEOUT, "nan"),
        (environment.ADMIN_ADDRESS, "8471"),
        (environment.ADMIN_ADDRESS, "localhost:http"),
        (environment.ADMIN_ADDRESS, "localhost:" + "8" * 5000),
        (environment.ENDPOINTS, "ebbtide:443"),
        (environment.ENDPOINTS, "https://[fd00::1:2379"),
        (environment.ENDPOINTS, "http://ex\u2100mple:2379"),
        (environment.WORKERS_SOCKET, "@shop\ud800"),
        (environment.PREFIX, "ebbtide/"),
        (environment.MAX_TASKS, "many"),
        (environment.MAX_TASKS, "1.5"),
        (environment.TASKS_PER_S, "-1"),
        (environment.BREAKER_TIMEOUTS, "inf"),
        (environment.ADMISSION, "queue"),
        (environment.ADMISSION_WAIT, "soon"),
    ],
)
def test_a_wrong_value_names_its_variable_and_what_is_used_instead(name: str, value: str) -> None:
    (problem,) = Settings.from_env({name: value}).problems
    assert problem.startswith(f"{name}: must ")
    assert repr(value) in problem
    assert "; using " in problem


def test_in_a_pod_the_kubelet_can_reach_the_admin_server_and_elsewhere_only_this_machine_can() -> None:
    assert Settings.from_env({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}).admin_host == "::"
    assert Settings.from_env({}).admin_host == "127.0.0.1"
    (problem,) = Settings.from_env({"KUBERNETES_SERVICE_HOST": "10.96.0.1", environment.ADMIN_ADDRESS: "8471"}).problems
    assert problem.endswith("; using [::]:8471")


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1.0, 1e300])
def test_a_duration_that_no_clock_can_wait_for_is_named(seconds: float) -> None:
    with pytest.raises(ValueError, match="durations: drain_timeout_s: must be seconds from 0 to 604800, not"):
        Settings(durations=Durations(drain_timeout_s=seconds))


def test_a_path_need_not_be_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    settings = Settings.from_env({environment.WORKERS_SOCKET: name})
    assert settings.problems == ()
    assert settings.meeting_place == name
    place = Place(name)
    listener = place.claim()
    assert listener is not None
    place.give_up(listener)


def test_an_ipv6_address_is_read_without_its_brackets() -> None:
    settings = Settings.from_env({environment.ADMIN_ADDRESS: "[::]:8471"})
    assert (settings.admin_host, settings.admin_port) == ("::", 8471)


def test_a_grace_period_that_is_too_short_names_every_number() -> None:
    environ = {environment.GRACE_PERIOD: "30", environment.QUIESCE: "5", environment.DRAIN_TIMEOUT: "60"}
    (problem,) = Settings.from_env(environ).problems
    assert "terminationGracePeriodSeconds is 30" in problem
    assert "5 (quiesce) + 60 (drain timeout) + 10 (cancel grace) + 5 (exit) = 80 s" in problem


def test_a_grace_period_that_fits_is_no_problem() -> None:
    assert Settings.from_env({environment.GRACE_PERIOD: "80"}).problems == ()


def test_limits_are_read_and_zero_stands_for_none() -> None:
    environ = {
        environment.MAX_TASKS: "0",
        environment.TASKS_PER_S: "50.5",
        environment.TASKS_BURST: "10",
        environment.BREAKER_TIMEOUTS: "3",
        environment.ADMISSION: "wait",
        environment.ADMISSION_WAIT: "2",
    }
    limits = Settings.from_env(environ).limits
    assert (limits.max_tasks, limits.rate_per_s, limits.burst) == (None, 50.5, 10)
    assert (limits.breaker_timeouts, limits.admission, limits.wait_s) == (3, "wait", 2)
    assert Settings.from_env({environment.TASKS_PER_S: "0"}).limits.rate_per_s is None
    assert Settings.from_env({}).limits == Limits.defaults()
