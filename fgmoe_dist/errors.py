"""The one exception a user is meant to read, and how another's message fits into its one line."""

from __future__ import annotations


class UserError(ValueError):
    """The user's input is at fault: configuration, data, shard, checkpoint or image.

    The message names the thing, the value and the cure in one line. Entry points print it without
    a traceback and exit with code 2; any other exception is a bug and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of `error`'s message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
