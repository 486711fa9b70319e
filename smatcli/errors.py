"""Errors whose message is meant for the user. The command line prints the message as one line and exits with `exit_code`."""


class SmatError(Exception):
    """A failed run (exit code 1). The message is one line: what is wrong, where (file, key, episode), and what to do."""

    exit_code = 1


class UserError(SmatError):
    """Invalid usage, recipe or data (exit code 2), detected before anything is changed."""

    exit_code = 2


def nearest(name: str, valid: list[str]) -> str:
    """Return `; did you mean 'x'?` with the closest valid name, or an empty string."""
    from difflib import get_close_matches

    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
