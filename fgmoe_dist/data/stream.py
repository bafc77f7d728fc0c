"""Streams shards into training batches and evaluation samples, the same for any number of ranks and workers.

The order of training data ("The order of the data", docs/contracts.md). Position p of the endless sequence lies in lane
p mod L, at place p div L of that lane. In every epoch the samples are put in a shuffled order (shards shuffled, and the
samples within each) and cut into L contiguous slices of equal length, one a lane; the few samples left over, fewer than
L, are others each time. A set with fewer samples than lanes is shuffled several times over in one epoch. Since a lane
walks shard after shard, each shard is read about once an epoch, and a batch mixes many places of the set. A resumed run
computes where each lane stands: nothing before that place is decoded.

Workers are DataLoader processes, started by forkserver, for a fork of a process with threads may hang. Worker w makes
the rank's micro-batches w, w + W, ..., which the DataLoader hands over in just that order.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fgmoe_dist.data import codec
from fgmoe_dist.data.augment import Transform, view_generator
from fgmoe_dist.data.post import Parcel, Post, shared_memory
from fgmoe_dist.data.shardset import BadSample, Entries, Shard, ShardSet, decode_sample, read_shard
from fgmoe_dist.errors import UserError
from fgmoe_dist.labels import Label
from fgmoe_dist.plugins import Plugged

logger = logging.getLogger(__name__)

MAX_LANES_PER_IMAGE = 4  # k: more lanes mix more of the set into a batch, and hold more shards in memory

_SHARDS, _WITHIN, _AUGMENT = range(3)  # what a random stream is for; keeps the streams of one seed apart


@dataclass(frozen=True)
class Order:
    """Which sample stands at which position. Depends on nothing but the set, the global batch size and the seed."""

    shard_sizes: tuple[int, ...]
    batch_size: int
    seed: int

    @property
    def lanes(self) -> int:
        """L = k * batch_size, few enough that a lane's slice is several shards long where the set allows it."""
        roomy = len(self.shard_sizes) // (4 * self.batch_size)
        k = max(k for k in (1, 2, MAX_LANES_PER_IMAGE) if k <= max(1, roomy))
        return k * self.batch_size

    @property
    def passes(self) -> int:
        """Shuffles of the whole set in one epoch; 1 unless there are fewer samples than lanes."""
        return -(-self.lanes // sum(self.shard_sizes))

    @property
    def lane_length(self) -> int:
        """Positions of a lane in one epoch."""
        return self.passes * sum(self.shard_sizes) // self.lanes

    def locate(self, position: int) -> tuple[int, int, int]:
        """(epoch, lane, place within the lane's slice of that epoch) of a position."""
        lane, along = position % self.lanes, position // self.lanes
        return along // self.lane_length, lane, along % self.lane_length

    def shard_order(self, epoch: int) -> np.ndarray:
        """Shard numbers in the order an epoch reads them, all `passes` shuffles one after the other."""
        rng = np.random.default_rng([self.seed, _SHARDS, epoch])
        return np.concatenate([rng.permutation(len(self.shard_sizes)) for _ in range(self.passes)])

    def within(self, epoch: int, turn: int, shard: int) -> np.ndarray:
        """The order of the samples within a shard, when it is the `turn`-th that an epoch reads."""
        return np.random.default_rng([self.seed, _WITHIN, epoch, turn]).permutation(self.shard_sizes[shard])

    def augmentation(self, position: int) -> np.random.Generator:
        """The generator that augments the sample at a position."""
        return np.random.default_rng([self.seed, _AUGMENT, position])


@dataclass
class _Lane:
    """One lane as one process reads it: holds the shard it stands in."""

    order: Order
    views: Sequence[Sequence[Shard]]  # each epoch reads the next; images have one
    epoch: int = -1
    turns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # shard numbers of this epoch
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # where each turn ends in the epoch
    turn: int = -1
    samples: list[tuple[str, Entries]] = field(default_factory=list)
    fault: BadSample | None = None  # why the shard it stands in cannot be read

    def fetch(self, epoch: int, place: int) -> tuple[Shard, str, Entries]:
        """The raw sample at a place of the epoch's whole line, or `BadSample`."""
        if epoch != self.epoch:
            self.epoch, self.turn = epoch, -1
            self.turns = self.order.shard_order(epoch)
            self.ends = np.cumsum(np.array(self.order.shard_sizes)[self.turns])
        turn = int(np.searchsorted(self.ends, place, side="right"))
        shard = self.views[epoch % len(self.views)][self.turns[turn]]
        if turn != self.turn:
            self.turn, self.samples, self.fault = turn, [], None  # before the next is read: only one is held
            try:
                raw = list(read_shard(shard).items())
                self.samples = [raw[i] for i in self.order.within(epoch, turn, self.turns[turn])]
            except BadSample as fault:
                self.fault = fault
        if self.fault:
            raise self.fault
        return shard, *self.samples[place - (self.ends[turn] - shard.samples)]


class _Stream(IterableDataset):
    """Hands over (value, faults met since the last value): a DataLoader passes items on in order and nothing else.

    A user's error travels as a fault too, for raised in a worker it would come out as a page of traceback. From a
    worker the value comes by `post`.
    """

    post: Post | None = None

    def __init__(self) -> None:
        self.plugged = Plugged()  # first in what a worker is sent

    def values(self, faults: list[UserError]) -> Iterator:
        """What this process streams; samples passed over are noted in `faults`."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[tuple[object, list[UserError]]]:
        faults: list[UserError] = []
        info = get_worker_info()
        try:
            for value in self.values(faults):
                yield self.post.send(info.id, value) if info else value, faults.copy()
                faults.clear()
        except UserError as error:
            faults.append(error)
        if faults:
            yield None, faults


class _TrainStream(_Stream):
    """The micro-batches of one rank; each worker makes every W-th."""

    def __init__(self, shards, views, order, transform, *, micro_batch_size, rank, world, start_step):
        super().__init__()
        self.shards: Sequence[Sequence[Shard]] = shards
        self.views: int = views
        self.order: Order = order
        self.transform = transform
        self.micro_batch_size, self.rank, self.world, self.start_step = micro_batch_size, rank, world, start_step

    def values(self, faults: list[UserError]) -> Iterator[dict]:
        lanes: dict[int, _Lane] = {}
        info = get_worker_info()
        number, step = (info.id, info.num_workers) if info else (0, 1)
        while True:
            positions = self._positions(number)
            batch = self.transform.empty(len(positions))
            for index, position in enumerate(positions):
                epoch, sample = self._sample(position, lanes, faults)
                self.transform.fill(batch, index, sample, self._generator(position, epoch, sample["id"]))
            yield batch
            number += step

    def _generator(self, position: int, epoch: int, id_: str) -> np.random.Generator:
        """What augments an image: anew at every position, or into one of its `views` in turn."""
        if self.views:
            return view_generator(self.order.seed, id_, epoch % self.views)
        return self.order.augmentation(position)

    def _positions(self, number: int) -> range:
        """Positions of the rank's `number`-th micro-batch since `start_step`."""
        share = self.order.batch_size // self.world
        step, part = divmod(number, share // self.micro_batch_size)
        first = (self.start_step + step) * self.order.batch_size + self.rank * share + part * self.micro_batch_size
        return range(first, first + self.micro_batch_size)

    def _sample(self, position: int, lanes: dict[int, _Lane], faults: list[UserError]) -> tuple[int, dict]:
        """The epoch of a position, and the sample there or, if that is bad, the next readable one behind it.

        Every reader finds the same.
        """
        epoch, lane, place = self.order.locate(position)
        reader = lanes.setdefault(lane, _Lane(self.order, self.shards))
        first, epoch_length = lane * self.order.lane_length + place, self.order.lanes * self.order.lane_length
        for further in range(epoch_length):
            try:
                raw = reader.fetch(epoch, (first + further) % epoch_length)
                return epoch, decode_sample(*raw, self.transform.keys)
            except BadSample as fault:
                faults.append(fault)
        raise UserError(f"none of {epoch_length} samples in a row can be read, the last: {faults[-1]}")


class _EvaluationStream(_Stream):
    """One rank's contiguous part of the set, cut into contiguous parts again for its workers."""

    def __init__(self, shards, keys, transform, start, stop):
        super().__init__()
        self.shards: tuple[Shard, ...] = shards
        self.keys, self.transform, self.start, self.stop = keys, transform, start, stop

    def values(self, faults: list[UserError]) -> Iterator[tuple[dict, torch.Tensor]]:
        info = get_worker_info()
        start, stop = _part(self.start, self.stop, info.id, info.num_workers) if info else (self.start, self.stop)
        first = 0
        for shard in self.shards:
            wanted = slice(max(start - first, 0), max(stop - first, 0))
            first += shard.samples
            if not shard.ids[wanted]:
                continue
            try:
                raw = list(read_shard(shard).items())
            except BadSample as fault:
                faults.append(fault)
                continue
            for id_, entries in raw[wanted]:
                try:
                    sample = decode_sample(shard, id_, entries, self.keys)
                except BadSample as fault:
                    faults.append(fault)
                else:
                    yield _as_tensors(sample), self.transform(sample)


def train_batches(
    shards: ShardSet,
    tasks: Sequence[str],
    *,
    batch_size: int,
    micro_batch_size: int,
    rank: int,
    world: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    transform: Transform,
    views: int = 0,
    max_bad_samples: int = 0,
) -> Iterator[dict]:
    """Endless micro-batches (docs/contracts.md) of one rank, `batch_size / world / micro_batch_size` a global step.

    Args:
        shards: the training set.
        tasks: labels wanted; the set must have each.
        batch_size: images of a global step, over all ranks.
        micro_batch_size: images of a batch.
        rank, world: this process and their number.
        seed: of order and augmentation.
        start_step: the global step to begin with; nothing before it is decoded.
        workers: processes; 0 reads here.
        transform: what makes samples tensors: `TrainTransform` of images, `FeatureTransform` of cached features.
        views: so many fixed augmented views of each image, one an epoch in turn, the same that `fgmoe shards features`
            caches for this seed; 0: augmented anew each time. Cached features bring their own.
        max_bad_samples: unreadable samples this rank may pass over; the next of the lane stands in for each.

    Raises:
        UserError: a task without labels, an empty set; while iterating, more samples that
            cannot be read than `max_bad_samples`.
    """
    shards.require(tasks)
    assert batch_size % (world * micro_batch_size) == 0, f"{batch_size} images over {world} ranks x {micro_batch_size}"
    if shards.samples == 0:
        raise UserError(f"the {shards.dataset} {shards.split} shards hold no samples: build them again")
    order = Order(tuple(shard.samples for shard in shards.shards), batch_size, seed)
    stream = _TrainStream(
        shards.cache.views if shards.cache else (shards.shards,),
        views,
        order,
        transform,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world=world,
        start_step=start_step,
    )
    return _load(stream, workers, max_bad_samples)


def evaluation_samples(
    shards: ShardSet,
    tasks: Sequence[str],
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    transform: Callable[[dict], torch.Tensor],
    max_bad_samples: int = 0,
) -> Iterator[tuple[dict, torch.Tensor]]:
    """(native sample, padded normalised image [3, SH, SW]) of this rank's part of a set, each sample on one rank only.

    Args:
        shards: the validation set.
        tasks: labels wanted (with edge comes `boundary`); those a sample lacks are absent from it.
        rank, world: this process and their number; with more ranks than samples some get none.
        workers: processes; 0 reads here.
        transform: `EvalTransform` or the like.
        max_bad_samples: unreadable samples this rank may leave out.

    Raises:
        UserError: as `train_batches`.
    """
    shards.require(tasks)
    if shards.cache:
        raise UserError("evaluation needs images, not cached features: set data.val to image shards")
    start, stop = _part(0, shards.samples, rank, world)
    keys = codec.keys_of(tasks, evaluation=True, labels=shards.labels)
    stream = _EvaluationStream(shards.shards, keys, transform, start, stop)
    loaded = _load(stream, min(workers, stop - start), max_bad_samples)
    return ((_as_native(sample, shards.labels), image_3HW) for sample, image_3HW in loaded)


def _load(stream: _Stream, workers: int, max_bad_samples: int) -> Iterator:
    """The values of a stream, from worker processes if there are any; stops when too many samples were bad."""
    bad: dict[str, int] = {}
    for value, faults in _started(_loader(stream, workers)):
        for fault in faults:
            if not isinstance(fault, BadSample):
                raise fault
            if str(fault) not in bad:
                bad[str(fault)] = fault.samples
                if sum(bad.values()) > max_bad_samples:
                    raise fault
                logger.warning("passed over (%d of at most %d): %s", sum(bad.values()), max_bad_samples, fault)
        if value is not None:
            yield stream.post.receive(value) if isinstance(value, Parcel) else value


def _started(loader: DataLoader) -> Iterator:
    """The running loader. No name may hold it: the traceback of an error would keep its workers running."""
    with shared_memory():
        return iter(loader)


def _loader(stream: _Stream, workers: int) -> DataLoader:
    context = None
    if workers:
        context = torch.multiprocessing.get_context("forkserver")
        # The server imports this module, and torch with it, once; the workers are forks of it.
        context.set_forkserver_preload([__name__])
        stream.post = Post(workers, context)
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        collate_fn=as_it_is,
        worker_init_fn=start_worker(),
        multiprocessing_context=context,
        pin_memory=torch.cuda.is_available(),
    )


def as_it_is(item):
    """DataLoader's `collate_fn` for values that are whole; its own would make tensors of arrays."""
    return item


def start_worker() -> Callable[[int], None]:
    """What a loader process does first (DataLoader's `worker_init_fn`): one thread, and an end with this process."""
    return functools.partial(_start_worker, os.getpid())


def _start_worker(rank_pid: int, _worker: int) -> None:
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    # torch's own watch is kept on the forkserver, which outlives a rank that was killed; and so would this worker, in
    # the way of whoever waits for the job's processes to end.
    threading.Thread(target=_end_with, args=(rank_pid,), daemon=True).start()


def _end_with(rank_pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # raised where it is dead already
        select.select([os.pidfd_open(rank_pid)], [], [])
    os._exit(1)


def _part(start: int, stop: int, part: int, parts: int) -> tuple[int, int]:
    """The `part`-th of `parts` nearly equal contiguous pieces of a range."""
    count = stop - start
    return start + part * count // parts, start + (part + 1) * count // parts


def _as_tensors(sample: dict) -> dict:
    """Arrays as tensors, which travel between processes in shared memory."""
    return {
        key: torch.from_numpy(np.require(value, requirements="W")) if key != "id" else value
        for key, value in sample.items()
    }


def _as_native(sample: dict, labels: Mapping[str, Label]) -> dict:
    arrays = {key: value.numpy() if key != "id" else value for key, value in sample.items()}
    return codec.native_sample(arrays, labels)
