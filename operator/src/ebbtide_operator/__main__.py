"""`python -m ebbtide_operator`, and the console script of the same."""

from __future__ import annotations

import os
import sys

from ebbtide_operator import logs, settings


def main() -> None:
    """Run the operator until SIGTERM or SIGINT; exit status 2 where a flag cannot be used."""
    try:
        told = settings.parse(sys.argv[1:], os.environ)
    except settings.SettingsError as error:
        sys.stderr.write(f"ebbtide-operator: {error}\n")
        sys.exit(2)
    logs.configure(told.log_level)
    # Late: `--help` and a wrong flag need none of it.
    from ebbtide_operator import app, loops

    loops.run(app.main(told))


if __name__ == "__main__":
    main()
