"""What can go wrong."""


class ReportError(Exception):
    """A user's mistake: a folder without a run, a file that is not what its name says. The message says what to do."""
