"""`python -m jestcli` is `jest`."""

from jestcli.cli import main

if __name__ == "__main__":
    main()
