"""`python -m ebbtide status|report|drain|undrain`: ask the process that runs in this container."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys

from ebbtide.settings import EVERYWHERE, Settings

COMMANDS = {
    "status": ("GET", "/drain"),
    "report": ("GET", "/debug/drain"),
    "drain": ("POST", "/drain"),
    "undrain": ("DELETE", "/drain"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return 0, 1 where the process refused, 2 where it cannot be reached."""
    parser = argparse.ArgumentParser(prog="python -m ebbtide", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    command = parser.parse_args(arguments).command
    settings = Settings.from_env(os.environ)
    host = "127.0.0.1" if settings.admin_host in {"0.0.0.0", EVERYWHERE} else settings.admin_host  # noqa: S104 (compared)
    headers = {"Authorization": f"Bearer {settings.admin_token}"} if settings.admin_token else {}
    connection = http.client.HTTPConnection(host, settings.admin_port, timeout=5)
    try:
        connection.request(*COMMANDS[command], headers=headers)
        answer = connection.getresponse()
        body = answer.read().decode()
    except OSError as error:
        sys.stderr.write(f"ebbtide: nobody answers at {host}:{settings.admin_port}: {error}\n")
        return 2
    finally:
        connection.close()
    try:
        sys.stdout.write(json.dumps(json.loads(body), indent=2) + "\n")
    except ValueError:
        sys.stdout.write(body)
    return 0 if answer.status < 400 else 1


if __name__ == "__main__":
    sys.exit(main())
