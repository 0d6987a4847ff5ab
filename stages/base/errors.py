"""Errors that the user can fix."""


class InputError(Exception):
    """Something that the user gave cannot be used.

    The message names what is wrong, the value found and what is allowed. `command` is a stage with
    the options to add, as `teacher-cache --force`: the command line prints it with the user's own
    options as the next command to type. Exit code 2, no traceback.
    """

    def __init__(self, message: str, *, command: str = "") -> None:
        super().__init__(message)
        self.command = command


class Stopped(Exception):
    """The work was stopped and has saved its progress; the message tells how to resume.

    code: exit code of the process, 128 + the signal's number.
    """

    def __init__(self, message: str, code: int = 130) -> None:  # pickle gives the message alone
        super().__init__(message)
        self.code = code
