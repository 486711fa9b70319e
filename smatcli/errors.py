"""The two errors that speak to the user; the command line turns them into one line and an exit code."""


class SmatError(Exception):
    """A run that failed (exit code 1): the message says what, where (file, key, episode) and what to do, in one line."""

    exit_code = 1


class UserError(SmatError):
    """Bad usage, recipe or data (exit code 2), found before anything was changed."""

    exit_code = 2


def nearest(name: str, valid: list[str]) -> str:
    """`; did you mean 'x'?` for the closest valid name, else an empty string."""
    from difflib import get_close_matches

    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
