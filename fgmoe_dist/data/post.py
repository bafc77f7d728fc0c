"""Batches on their way from loader processes to the training process, in shared memory that is used again.

Sent the usual way, every batch lies in fresh shared memory: the kernel clears it page by page, maps it page by page on
both sides and takes it back. For the 11 MB of an image's tensors that costs more than to make them. Here a loader
process packs a batch into one of a few buffers that both sides keep mapped. A buffer is free again when the last tensor
of its batch is gone, so a batch lives as long as anyone holds it; who holds many makes new buffers, never a jam.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; any type may begin there

_keys = itertools.count()
_posts: weakref.WeakValueDictionary[int, Post] = weakref.WeakValueDictionary()


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
