"""The error that a user can mend."""


class InputError(Exception):
    """Something the user gave can't be used.

    The message says what was wrong, the value found, what is allowed and the next command to type.
    The command line prints it without a traceback and exits with 2.
    """
