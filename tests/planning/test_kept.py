"""What routed experts keep for the backward pass, against what autograd and the kernels' own functions hold."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fgmoe_dist.config import build_config
from fgmoe_dist.experts.backends import create_routed_experts
from fgmoe_dist.experts.kernels import choose_kernel, find_kernel
from fgmoe_dist.experts.kinds.ffn import FFNWeights
from fgmoe_dist.experts.kinds.lora import LoRAWeights
from fgmoe_dist.planning.counts import Counts
from fgmoe_dist.planning.kept import kernel_keeps, planned_kernel, routed_bytes
from fgmoe_dist.precision import PRECISIONS

C, H, K, EXPERTS = 64, 16, 4, 8


def configuration(precision, kernel="auto", **experts):
    """2 tasks of 1024 tokens."""
    experts = {"count": EXPERTS, "split": 1, "hidden": H, "top_k": K, "kernel": kernel, **experts}
    return build_config({
        "tasks": ["semseg", "depth"], "experts": experts,
        "data": {"image_size": [32, 32]}, "decoder": {"channels": C, "stride": 1},
        "train": {"batch_size": 1, "micro_batch_size": 1, "precision": precision},
    })  # fmt: skip


def held_bytes(function, *counted_elsewhere) -> int:
    """Of every storage that the graph of `function()` holds, but those."""
    known, held = {_storage(tensor) for tensor in counted_elsewhere}, {}

    def keep(tensor):
        held[_storage(tensor)] = tensor.detach()  # alive, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    for function in (result.grad_fn, result.grad_fn.next_functions[0][0]):  # perhaps behind a view
        for tensor in getattr(function, "pieces", ()):  # the kernel `cpu` holds its plan itself
            if isinstance(tensor, torch.Tensor):
                keep(tensor)
    return sum(tensor.untyped_storage().nbytes() for key, tensor in held.items() if key not in known)


def _storage(tensor):
    return tensor.untyped_storage()._cdata


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", ["reference", "cpu", "grouped"])
def test_a_kernel_keeps_what_is_planned(kernel, precision):
    """Rows as they come from other ranks: of some slots the expert lives elsewhere."""
    torch.manual_seed(0)
    dtype, rows = PRECISIONS[precision], 4096
    shapes = [(EXPERTS, C, H), (EXPERTS, H), (EXPERTS, H, C), (EXPERTS, C)]
    bank = FFNWeights(*(torch.randn(shape).to(dtype).requires_grad_() for shape in shapes))
    x_MC, weight_MK = torch.randn(rows, C).to(dtype).requires_grad_(), torch.rand(rows, K).requires_grad_()
    expert_MK = torch.rand(rows, 2 * EXPERTS).topk(K).indices.to(torch.int32)
    expert_MK = expert_MK.where(expert_MK < EXPERTS, -1)
    held = held_bytes(lambda: find_kernel("ffn", kernel)(x_MC, weight_MK, expert_MK, bank), *bank)
    keeps = kernel_keeps("ffn", kernel, C, H, K, dtype.itemsize)
    slots = expert_MK.numel() if keeps.empty_too else (expert_MK >= 0).sum().item()
    assert rows * (keeps.features + keeps.row) + slots * keeps.slot == pytest.approx(held, rel=0.03)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_low_rank_expert_keeps_its_hidden_units_once(precision):
    torch.manual_seed(0)
    dtype, rows = PRECISIONS[precision], 4096
    bank = [torch.randn(shape).to(dtype).requires_grad_() for shape in [(EXPERTS, C, H), (EXPERTS, H, C)]]
    x_MC, weight_MK = torch.randn(rows, C).to(dtype).requires_grad_(), torch.rand(rows, K).requires_grad_()
    expert_MK = torch.rand(rows, EXPERTS).topk(K).indices.to(torch.int32)
    kernel = find_kernel("lora", "reference")
    held = held_bytes(lambda: kernel(x_MC, weight_MK, expert_MK, LoRAWeights(*bank)), *bank)
    keeps = kernel_keeps("lora", "reference", C, H, K, dtype.itemsize)
    assert rows * (keeps.features + keeps.row) + rows * K * keeps.slot == pytest.approx(held, rel=0.03)


@pytest.fixture
def one_thread():
    """The cpu kernel pads groups of pieces, which are larger with more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", ["reference", "cpu", "grouped"])
@pytest.mark.parametrize("shared", [0, 1])
def test_a_layer_keeps_what_is_planned(kernel, precision, shared, one_thread):
    """Routers and experts, all on one rank; the tokens are the shared experts' where there are some."""
    torch.manual_seed(0)
    config = configuration(precision, kernel, shared=shared)
    dtype, tokens = PRECISIONS[precision], 1024
    layer = create_routed_experts(2, C, config.experts, 1, block=0, seed=0).to(dtype)
    x_TNC = 2 * torch.randn(2, tokens, C).to(dtype).requires_grad_()
    held = held_bytes(lambda: layer.dispatch(x_TNC).y_TNC, *layer.parameters(), *([x_TNC] if shared else []))
    planned = routed_bytes(config, Counts(0, 0, 0, tokens, 0, 0, 0, ()), "cpu", 1.0)
    assert planned == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize(("device", "precision", "hidden"), [
    ("cpu", "fp32", 16), ("cpu", "bf16", 16), ("cuda", "fp32", 16), ("cuda", "bf16", 16), ("cuda", "bf16", 12),
])  # fmt: skip
def test_auto_is_the_kernel_that_the_device_takes(device, precision, hidden):
    config, dtype = configuration(precision, hidden=hidden), PRECISIONS[precision]
    x_MC = SimpleNamespace(
        device=torch.device(device), is_cuda=device == "cuda", dtype=dtype, element_size=lambda: dtype.itemsize
    )
    bank = [torch.empty(EXPERTS, C, hidden, dtype=dtype, device="meta")]
    assert planned_kernel(config, device) == choose_kernel("ffn", "auto", x_MC, bank)
