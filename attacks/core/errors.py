"""The one error that means "the user can fix this"."""

from collections.abc import Iterable
from difflib import get_close_matches


class BadInput(ValueError):
    """Unusable input; the message is one line that names the culprit and what would be valid.

    The command line prints it and exits with code 2. Raised inside a cell it becomes a record with
    status ``error``, so work already done is kept.
    """


def suggestion(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean ...?", or nothing."""
    close = get_close_matches(name, list(valid), n=2, cutoff=0.65)
    return f"; did you mean {' or '.join(close)}?" if close else ""
