"""Meters fed while the network goes on: boundaries cost tenths of a second of processor time per image.

A full evaluation of PASCAL-Context would otherwise wait for its boundary meter longer than for the network.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np

from fgmoe_dist.data.stream import start_worker
from fgmoe_dist.metrics.constant import ConstantBaseline
from fgmoe_dist.metrics.image_sums import ImageSums
from fgmoe_dist.metrics.meter import Meter
from fgmoe_dist.plugins import Plugged

_WAITING = 4  # images a worker may be behind; each is some 10 MB


class Scorer:
    """Counts images into meters and baselines, in worker processes if there are any.

    Each image's sums come back alone and are added in the order of the images: the result is the same, bit for bit,
    for any number of workers. Use it as a context; the meters are complete on leaving it.

    Args:
        meters: one for each task, by name; they receive the sums.
        baselines: likewise, see the same labels.
        workers: processes; 0 counts here.
        image_sums: receives each image's sums too.
    """

    def __init__(
        self,
        meters: Mapping[str, Meter],
        baselines: Mapping[str, ConstantBaseline],
        workers: int,
        image_sums: ImageSums | None = None,
    ):
        self._meters, self._baselines, self._image_sums = meters, baselines, image_sums
        self._pool = self._start(workers) if workers else None
        self._waiting: deque[tuple[str, Future]] = deque()  # by the images' ids
        self._most_waiting = _WAITING * workers

    def _start(self, workers: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, start_worker.__module__])
        empty = [{name: one.empty() for name, one in some.items()} for some in (self._meters, self._baselines)]
        return ProcessPoolExecutor(workers, context, _start_process, (Plugged(), start_worker(), *empty))

    def update(self, sample: Mapping, predictions: Mapping[str, np.ndarray]) -> None:
        """Count one image.

        Raises:
            UserError: as `Meter.update`; with workers, perhaps some images late.
        """
        if self._pool is None:
            self._add(sample["id"], _count(self._meters, self._baselines, predictions, sample))
            return
        labels = {key: value for key, value in sample.items() if key != "image"}
        self._waiting.append((sample["id"], self._pool.submit(_count_in_process, predictions, labels)))
        while len(self._waiting) > self._most_waiting:
            self._add_oldest()

    def _add_oldest(self) -> None:
        image_id, counted = self._waiting.popleft()
        self._add(image_id, counted.result())

    def _add(self, image_id: str, states: list[np.ndarray]) -> None:
        if self._image_sums is not None:
            self._image_sums.add(image_id, dict(zip(self._meters, states)))
        for one, state in zip((*self._meters.values(), *self._baselines.values()), states):
            one.merge(state)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            while kind is None and self._waiting:
                self._add_oldest()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def _count(meters, baselines, predictions, sample) -> list[np.ndarray]:
    """The sums of one image, meter by meter, then baseline by baseline."""
    ones = [meter.empty() for meter in meters.values()]
    for name, meter in zip(meters, ones):
        meter.update(predictions[name], sample)
    others = [baseline.empty() for baseline in baselines.values()]
    for baseline in others:
        baseline.update(sample)
    return [one.state() for one in (*ones, *others)]


_in_process: tuple = ()  # a worker's empty meters and baselines


def _start_process(_: Plugged, start, meters, baselines) -> None:
    global _in_process
    start(0)
    _in_process = meters, baselines


def _count_in_process(predictions, sample) -> list[np.ndarray]:
    return _count(*_in_process, predictions, sample)
