"""`python -m smatcli`, the same as `smat`."""

from smatcli.cli import main

if __name__ == "__main__":
    main()
