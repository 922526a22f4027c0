"""`python -m jestcli` is `jest`."""

import sys


def main() -> None:
    """The command; one line where the package was installed for its selection alone."""
    try:
        from jestcli import cli
    except ModuleNotFoundError as missing:
        from jestcli.utils.extras import how_to_install

        advice = how_to_install(missing.name or "")
        sys.exit(f"jest: {advice or missing}")
    cli.main()


if __name__ == "__main__":
    main()
