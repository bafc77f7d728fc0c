"""Batches on their way from loader processes to the training process, in shared memory that is used again.

Sent the usual way, every batch lies in fresh shared memory: the kernel clears it page by page, maps it page by page on
both sides and takes it back. For the 11 MB of an image's tensors that costs more than to make them. Here a loader
process packs a batch into one of a few buffers that both sides keep mapped. A buffer is free again when the last tensor
of its batch is gone, so a batch lives as long as anyone holds it; who holds many makes new buffers, never a jam.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgmoe_dist.errors import UserError, first_line

ALIGNMENT = 64  # bytes; any type may begin there
SHARED_MEMORY = Path("/dev/shm")  # small in a container: docker gives 64 MiB unless told otherwise

_keys = itertools.count()
_posts: weakref.WeakValueDictionary[int, Post] = weakref.WeakValueDictionary()


@contextlib.contextmanager
def shared_memory(size: int = 0) -> Iterator[None]:
    """Where shared memory, `size` bytes of it, cannot be had within: UserError with the cure."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "shared memory" not in str(error):
            raise
        raise _too_small(size, first_line(error)) from None


def _too_small(size: int, reason: str) -> UserError:
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    wanted = f", {size / 2**20:.0f} MiB are wanted at once" if size else ""
    return UserError(
        f"shared memory {SHARED_MEMORY} has {free / 2**20:.0f} MiB free{wanted} ({reason}); give the container more"
        f" (docker run --shm-size=2g, or --ipc=host), or load without processes: data.workers=0, --workers 0"
    )


@dataclass(frozen=True)
class _Slot:
    """Stands where a tensor was, and says where in the buffer it is."""

    start: int
    end: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def of(self, buffer: Tensor) -> Tensor:
        return buffer[self.start : self.end].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Parcel:
    """What is sent of a value: everything but its tensors, and in which buffer those are."""

    post: int
    worker: int
    number: int
    buffer: Tensor | None  # where it is new to the receiver
    skeleton: Any

    def pin_memory(self) -> Any:
        """What DataLoader's thread calls where there is a GPU: the value in pinned memory; its buffer is free again."""
        return _map(_posts[self.post].receive(self), Tensor, lambda tensor: tensor.pin_memory())


class Post:
    """The buffers of a loader; its loader processes have copies of it that send, this process receives.

    Args:
        workers: number of loader processes.
        context: of multiprocessing, which starts them.
    """

    def __init__(self, workers: int, context: Any) -> None:
        self.key = next(_keys)
        self.returned = [context.SimpleQueue() for _ in range(workers)]
        self.buffers: dict[tuple[int, int], Tensor] = {}  # by (worker, number), on either side
        self.free: list[int] = []
        _posts[self.key] = self

    def send(self, worker: int, value: Any) -> Parcel:
        """Pack a value (tensors in dicts, lists and tuples); called in loader process `worker`."""
        while not self.returned[worker].empty():
            self.free.append(self.returned[worker].get())
        tensors: list[tuple[_Slot, Tensor]] = []
        skeleton = _map(value, Tensor, lambda tensor: _slot(tensor, tensors))
        size = tensors[-1][0].end if tensors else 0
        number = next((n for n in self.free if len(self.buffers[worker, n]) >= size), None)
        if is_new := number is None:
            number = len(self.buffers)
            with shared_memory(size):
                storage = torch.UntypedStorage._new_shared(max(size, 1))
            self.buffers[worker, number] = torch.empty(0, dtype=torch.uint8).set_(storage)
        else:
            self.free.remove(number)
        buffer = self.buffers[worker, number]
        for slot, tensor in tensors:
            slot.of(buffer).copy_(tensor)
        return Parcel(self.key, worker, number, buffer if is_new else None, skeleton)

    def receive(self, parcel: Parcel) -> Any:
        """The value that was sent; its buffer goes back when the last of its tensors does."""
        key = parcel.worker, parcel.number
        if parcel.buffer is not None:
            self.buffers[key] = parcel.buffer
        array = self.buffers[key].numpy()[:]  # torch holds on to this very object as long as a tensor needs it
        weakref.finalize(array, _give_back, self.returned[parcel.worker], parcel.number).atexit = False
        buffer = torch.from_numpy(array)
        return _map(parcel.skeleton, _Slot, lambda slot: slot.of(buffer))


def _give_back(returned: Any, number: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # the loader has ended
        returned.put(number)


def _slot(tensor: Tensor, tensors: list[tuple[_Slot, Tensor]]) -> _Slot:
    """Where a tensor goes, behind those on the list; it joins them."""
    end = tensors[-1][0].end if tensors else 0
    start = -(-end // ALIGNMENT) * ALIGNMENT
    slot = _Slot(start, start + tensor.numel() * tensor.element_size(), tuple(tensor.shape), tensor.dtype)
    tensors.append((slot, tensor))
    return slot


def _map(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """`value` with every `kind` in it replaced."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: _map(item, kind, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, kind, function) for item in value)
    return value
