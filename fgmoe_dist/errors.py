"""What a user is meant to read: two kinds of error, and how any message becomes one line."""

from __future__ import annotations


class UserError(ValueError):
    """The user's input is at fault: configuration, data, shard, checkpoint or image.

    The message names the thing, the value and the cure in one line. Entry points print it without
    a traceback and exit with code 2; any other exception is a bug and keeps its traceback.
    """


class CannotWrite(OSError):
    """A file of ours could not be written: no room, no permission, a folder in its way. The user's to mend, too.

    An OSError with errno, reason and path, so that whoever expects one still meets it.
    """

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written ({self.strerror}); make room there, or name another place"


def told(error: BaseException) -> str | None:
    """The one line of an error that is the user's to mend; None for any other, which keeps its traceback."""
    return one_line(str(error)) if isinstance(error, (UserError, CannotWrite)) else None


def one_line(text: str) -> str:
    """`text` as any terminal takes it: line breaks and what is no character (file names may hold both) are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of `error`'s message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
