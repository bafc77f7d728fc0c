"""Batches sent in buffers that are used again: what arrives, and that nobody's batch is written over."""

import multiprocessing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data._utils.pin_memory import pin_memory

from fgmoe_dist.data.post import Parcel, Post, shared_memory
from fgmoe_dist.errors import UserError

DTYPES = (torch.uint8, torch.float16, torch.float32, torch.int64, torch.bool)
CONTEXT = multiprocessing.get_context("forkserver")


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    return torch.randint(0, 2, shape).to(draw(st.sampled_from(DTYPES)))


LEAVES = st.one_of(st.text(max_size=3), st.none(), tensors())
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
)


def _same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    return one == other


@settings(max_examples=100, deadline=None)
@given(values=st.lists(VALUES, min_size=1, max_size=3))
def test_what_is_sent_arrives(values):
    post = Post(1, CONTEXT)
    held = [(value, post.receive(post.send(0, (value, value)))) for value in values]
    for value, arrived in held:
        assert _same(arrived, (value, value))


def test_strided_tensors_arrive_by_value():
    post, tensor = Post(1, CONTEXT), torch.arange(12).view(3, 4)
    for strided in (tensor.T, tensor[:, 1:3], tensor[::2]):
        assert torch.equal(post.receive(post.send(0, [strided]))[0], strided)


def test_a_buffer_is_used_again_once_its_last_tensor_is_gone():
    post = Post(1, CONTEXT)
    first = post.send(0, {"a": torch.zeros(4), "b": torch.ones(4)})
    value = post.receive(first)
    last = value["b"][1:3]
    del value
    assert post.send(0, torch.full((4,), 7.0)).number != first.number
    assert last.tolist() == [1, 1]
    del last
    again = post.send(0, torch.full((4,), 8.0))
    assert again.number == first.number and again.buffer is None
    larger = post.send(0, torch.zeros(1000))
    assert larger.buffer is not None and post.receive(larger).shape == (1000,)


class _Counting(IterableDataset):
    """0, 1, 2, ... as tensors, by post."""

    def __init__(self, post):
        self.post = post

    def __iter__(self):
        for number in range(20):
            yield self.post.send(get_worker_info().id, {"x": torch.full((1000,), number), "n": number})


def _load(pin_memory):
    post = Post(1, CONTEXT)
    return post, DataLoader(
        _Counting(post), batch_size=None, num_workers=1, multiprocessing_context=CONTEXT, pin_memory=pin_memory
    )


def test_between_processes_held_batches_stay_and_dropped_ones_come_back():
    post, loader = _load(pin_memory=False)
    held = []
    for parcel in loader:
        assert isinstance(parcel, Parcel)
        value = post.receive(parcel)
        assert value["x"].eq(value["n"]).all()
        if value["n"] % 4 == 0:
            held.append(value)
        del value, parcel
    assert all(value["x"].eq(value["n"]).all() for value in held) and [value["n"] for value in held] == [
        0,
        4,
        8,
        12,
        16,
    ]
    assert len(post.buffers) < 20


def test_pinning_copies_the_value_and_frees_its_buffer(monkeypatch):
    """As the loader's pinning thread does it, with a copy in place of pinned memory."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    post = Post(1, CONTEXT)
    parcel = post.send(0, {"x": torch.arange(5), "features": [torch.ones(2)], "id": ["a"]})
    value, faults = pin_memory((parcel, ["fault"]))
    assert faults == ["fault"] and _same(value, {"x": torch.arange(5), "features": [torch.ones(2)], "id": ["a"]})
    assert post.send(0, torch.zeros(5)).number == parcel.number
    assert value["x"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.gpu
def test_with_a_gpu_values_come_pinned():
    post, loader = _load(pin_memory=True)
    values = list(loader)
    assert [value["n"] for value in values] == list(range(20))
    assert all(value["x"].is_pinned() and value["x"].cuda().eq(value["n"]).all() for value in values)
    assert len(post.buffers) < 20


class WithoutRoom(IterableDataset):
    """Sends a batch by a post; what a worker meets of the user's comes as `told`."""

    def __init__(self, post):
        self.post = post

    def __iter__(self):
        def refuse(size):
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
            )

        torch.UntypedStorage._new_shared = refuse
        try:
            self.post.send(get_worker_info().id, {"image": torch.zeros(3 * 2**20, dtype=torch.uint8)})
        except UserError as error:
            yield str(error)


def test_shared_memory_that_is_too_small_is_told_with_the_cure():
    loader = DataLoader(WithoutRoom(Post(1, CONTEXT)), None, num_workers=1, multiprocessing_context=CONTEXT)
    (line,) = loader
    for part in ("/dev/shm has", "3 MiB are wanted at once", "--shm-size=2g", "data.workers=0"):
        assert part in line
    assert "\n" not in line


def test_another_mistake_is_no_matter_of_shared_memory():
    with pytest.raises(RuntimeError, match="^shape$"), shared_memory():
        raise RuntimeError("shape")
    with pytest.raises(UserError, match="Read-only file system"), shared_memory():
        raise OSError(30, "Read-only file system")
