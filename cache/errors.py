"""What can be wrong with a store."""


class CacheError(Exception):
    """A store cannot be used; the message says why.

    `command` is a stage with the options to add, as `teacher-cache --force`: what makes it usable.
    """

    def __init__(self, message: str, *, command: str = "") -> None:
        super().__init__(message)
        self.command = command
