"""What can be wrong with a target cache."""


class CacheError(Exception):
    """A cache can't be used as it lies there; the message says why and what to type."""
