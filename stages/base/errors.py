"""The error that a user can mend."""


class InputError(Exception):
    """Something the user gave can't be used.

    The message says what was wrong, the value found, what is allowed and the next command to type.
    The command line prints it without a traceback and exits with 2.
    """


class Stopped(Exception):
    """The work was asked to stop, and saved what it had; the message says how to go on.

    code: what the process exits with, 128 + the signal's number.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
