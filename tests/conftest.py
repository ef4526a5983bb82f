"""What every test may rely on, however the run was started."""

import signal

from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing about the rule that is tested.
settings.register_profile("ebbtide", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ebbtide")


def pytest_configure() -> None:
    # A shell starts what it puts in the background with SIGINT ignored, and every process below inherits that: the
    # tests of Ctrl-C would wait for ever. A handler is not inherited, so processes of tests begin as in a terminal.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
