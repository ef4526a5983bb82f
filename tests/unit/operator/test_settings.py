import subprocess
import sys
from pathlib import Path

import pytest

from ebbtide_operator.core.model import Mode
from ebbtide_operator.settings import OPTIONS, SettingsError, parse


def test_nothing_needs_to_be_said() -> None:
    settings = parse([], {"POD_NAME": "ebbtide-7", "POD_NAMESPACE": "drains"})
    assert settings.identity == "ebbtide-7"
    assert settings.namespace == "drains"
    assert settings.etcd_endpoints == ("https://ebbtide-etcd.drains.svc:2379",)
    assert settings.pod_endpoints == ("https://ebbtide.drains.svc:443",)
    assert settings.lease == "ebbtide-operator"
    assert settings.etcd_tls_own
    assert settings.etcd_tls is None
    assert (settings.https_port, settings.http_port) == (8443, 8080)
    assert settings.delete_released
    assert (settings.fail_open_after_s, settings.lease_duration_s) == (10, 15)
    assert settings.defaults.mode is Mode.OFF
    assert settings.defaults.drain_timeout_s == 60


def test_a_flag_beats_its_environment_variable_and_that_the_default() -> None:
    environ = {"EBBTIDE_OPERATOR_HTTPS_PORT": "1111", "EBBTIDE_OPERATOR_HTTP_PORT": "2222"}
    settings = parse(["--https-port=3333"], environ)
    assert (settings.https_port, settings.http_port) == (3333, 2222)


def test_two_processes_without_a_pods_name_are_told_apart() -> None:
    assert parse([], {}).identity.endswith(f"-{__import__('os').getpid()}")


def test_defaults_are_read_by_the_rules_of_the_annotations() -> None:
    settings = parse(["--defaults-drain-timeout=5m", "--defaults-cancel-grace=20s", "--defaults-quiesce=0s"], {})
    defaults = settings.defaults
    assert (defaults.drain_timeout_s, defaults.cancel_grace_s, defaults.quiesce_s) == (300, 20, 0)


def test_etcd_without_tls_and_with_a_password(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret")
    settings = parse(
        [
            "--etcd-tls=none",
            "--etcd-endpoints=http://a:2379, http://b:2379/",
            "--etcd-username=ebbtide",
            f"--etcd-password-file={password}",
        ],
        {},
    )
    assert settings.etcd_endpoints == ("http://a:2379", "http://b:2379")
    assert not settings.etcd_tls_own
    assert settings.etcd_tls is None
    assert settings.etcd_password_file == password


def test_a_folder_with_certificates_is_taken(tmp_path: Path) -> None:
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (tmp_path / name).touch()
    settings = parse([f"--etcd-tls={tmp_path}"], {})
    assert settings.etcd_tls == tmp_path
    assert not settings.etcd_tls_own


def test_the_adapter_is_the_gateway_unless_another_is_named() -> None:
    assert parse([], {}).etcd_adapter == "gateway"
    assert parse([], {"EBBTIDE_OPERATOR_ETCD_ADAPTER": "etcd3"}).etcd_adapter == "etcd3"


def test_an_adapter_whose_package_is_missing_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert parse([], {}).etcd_adapter == "gateway"
    with pytest.raises(SettingsError, match=r"--etcd-adapter .*pip install 'ebbtide\[operator,etcd3\]'"):
        parse(["--etcd-adapter=etcd3"], {})


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("https-port", "http"),
        ("https-port", "0"),
        ("http-port", "70000"),
        ("delete-released", "maybe"),
        ("fail-open-after", "soon"),
        ("fail-open-after", "0.1"),
        ("fail-open-after", "nan"),
        ("lease-duration", "1"),
        ("log-level", "loud"),
        ("etcd-adapter", "grpc"),
        ("prefix", "no-slash"),
        ("namespace", "With Spaces"),
        ("etcd-endpoints", "etcd:2379"),
        ("etcd-endpoints", ","),
        ("etcd-endpoints", "http://etcd:2379"),
        ("etcd-tls", "/nowhere"),
        ("etcd-username", "alone"),
        ("etcd-password-file", "/nowhere"),
        ("pod-endpoints", "ftp://x"),
        ("defaults-drain-timeout", "soon"),
        ("defaults-quiesce", "-1s"),
    ],
)
def test_a_value_that_cannot_be_used_names_the_flag_and_the_value(flag: str, value: str) -> None:
    variable = f"EBBTIDE_OPERATOR_{flag.upper().replace('-', '_')}"
    for arguments, environ in (([f"--{flag}={value}"], {}), ([], {variable: value})):
        with pytest.raises(SettingsError) as caught:
            parse(arguments, environ)
        assert f"--{flag}" in str(caught.value)
        assert variable in str(caught.value)
        assert value in str(caught.value)


def test_every_flag_of_the_architecture_is_there() -> None:
    text = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text()
    missing = [option for option in OPTIONS if f"--{option}" not in text and not option.startswith("defaults-")]
    assert missing == []


def test_a_wrong_flag_ends_the_process_with_one_line_and_status_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ebbtide_operator", "--https-port=x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ebbtide-operator: --https-port (or EBBTIDE_OPERATOR_HTTPS_PORT)")
    assert done.stderr.count("\n") == 1
