"""The one error that means "the user can fix this"."""


class BadInput(ValueError):
    """Unusable input; the message is one line that names the culprit and what would be valid.

    The command line prints it and exits with code 2. Raised inside a cell it becomes a record with
    status ``error``, so work already done is kept.
    """
