"""Foreign files: whatever goes wrong while one is read becomes one line that names it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fgmoe_dist.errors import UserError, first_line

CURE = "replace that file"
GONE = "unpack the archive again, or take its id off the list"


class named:
    """Within it a file is read and nothing else done: any exception but `UserError` is the file's fault.

    Decoders raise whatever comes to them on foreign bytes (struct.error, KeyError, AssertionError, ...), so no list of
    exceptions would be complete.

    Args:
        path: the file, which must be there and hold something.
        cure, gone: what to do about a file that cannot be read, and about one that is missing or empty, if that is
            something else.
    """

    def __init__(self, path: Path, cure: str = CURE, gone: str | None = GONE):
        self.path, self.cure, self.gone = path, cure, gone

    def __enter__(self) -> None:
        try:
            size = self.path.stat().st_size
            if not self.path.is_file():
                raise OSError("it is no file")
        except FileNotFoundError as error:
            raise self._absent("is missing", error.strerror) from None
        except (OSError, ValueError) as error:  # a name too long, a loop of links, no permission, a zero byte
            raise self._fault(_reason(error)) from None
        if size == 0:
            raise self._absent("is 0 bytes long", "0 bytes long")

    def _absent(self, what: str, reason: str) -> UserError:
        return UserError(f"{self.path} {what}: {self.gone}") if self.gone else self._fault(reason)

    def _fault(self, reason: str) -> UserError:
        return UserError(f"{self.path} cannot be read ({reason}); {self.cure}")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise self._fault(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image of a known kind"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"Image size: more than {Image.MAX_IMAGE_PIXELS:,} pixels, make it smaller"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return getattr(error, "strerror", None) or " ".join(first_line(error).split())
