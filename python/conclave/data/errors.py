"""The error of this package."""


class DataError(Exception):
    """A mistake the user can mend: says what is wrong, where, and the remedy.

    The program prints it and exits with code 2.
    """
