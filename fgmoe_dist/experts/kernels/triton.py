"""Fused Triton kernels: rows are gathered, multiplied and scattered where they lie; nothing is copied in expert order.

Forward: `_first_layer` gathers tokens as it multiplies, bias and GELU in its epilogue; `_second_layer` adds its bias,
applies the gate and scatters each row to its token's slot; `_sum_slots` adds the K neighbouring slots of a token, which
are freed at once. The experts of a token work in different tiles, so adding in place would take atomics, whose order,
and with it the last bits, changes from run to run.

Backward: `_hidden_gradient` gives the gradients of gates and hidden units in one pass, `_second_layer` once more those
of x, `_weight_gradient` those of a layer's weights and biases. Besides the inputs one number per hidden unit is kept,
from before its GELU: K * H a token, no more than x where K experts together are as wide as x. To compute it anew would
cost half a forward pass.

Sizes that depend on the routing stay on the device: shapes bound the number of tiles, and a tile beyond the last one
returns at once. Products are summed in fp32. The precision is that of x, to which a bank in another is cast.

Multiplying scattered rows in place is ScatterMoE's idea (arXiv 2403.08245).

Legend: kernels/__init__.py; S = M * K slots, R rows (the filled slots, sorted by expert; arrays have room for S), T
tiles of rows. Inside the kernels: R the rows of a tile, D a block of the summed dimension, A and N blocks of columns.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.kinds.ffn import FFNWeights

try:
    import triton
    import triton.language as tl
except ImportError:
    raise UserError(
        "experts.kernel=triton needs the package triton, which torch's CUDA builds for Linux bring: "
        "install one of those, or set experts.kernel=auto"
    ) from None

# Triton's interpreter runs the kernels in NumPy, for tests. It multiplies bf16 numbers as the integers that hold them.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


# ---- tuning ----------------------------------------------------------------------------------------------------------


def _fitting(configs: list[triton.Config], arguments: dict, **_) -> list[triton.Config]:
    """Those whose block of columns is not mostly beyond the last one."""
    widest = max(32, triton.next_power_of_2(arguments["width"]))
    return [config for config in configs if config.kwargs["BLOCK_N"] <= widest]


def _tuned(key: list[str], blocks: tuple[str, str], *choices: tuple[int, int, int, int]):
    """Measures `choices` of (*blocks, warps, stages) once a `key` and dtype, and keeps the answer for later processes.

    The number of tokens enters a key only as `BLOCK_R`, of which there are four. A kernel writes each value once, so
    that running it again to measure it changes nothing.
    """
    if INTERPRETED:
        return triton.autotune([triton.Config(dict.fromkeys(blocks, 32))], key=[])
    configs = [triton.Config(dict(zip(blocks, each)), num_warps=each[2], num_stages=each[3]) for each in choices]
    return triton.autotune(configs, key, prune_configs_by={"early_config_prune": _fitting}, cache_results=True)


_tuned_product = _tuned(
    ["depth", "width", "BLOCK_R", "GATED"], ("BLOCK_N", "BLOCK_D"),
    (32, 32, 4, 4), (32, 64, 4, 3), (64, 32, 4, 4), (64, 64, 4, 3), (128, 32, 4, 4), (128, 64, 8, 3),
)  # fmt: skip
# Its epilogue holds five values a hidden unit: more columns a warp no longer fit into registers.
_tuned_hidden_gradient = _tuned(
    ["depth", "width", "BLOCK_R"], ("BLOCK_N", "BLOCK_D"),
    (32, 32, 4, 4), (32, 64, 4, 3), (32, 64, 8, 3), (64, 64, 4, 3), (64, 64, 8, 3), (64, 32, 8, 4),
)  # fmt: skip
_tuned_weight_gradient = _tuned(
    ["height", "width", "BLOCK_R", "FIRST"], ("BLOCK_A", "BLOCK_N"),
    (64, 32, 4, 3), (64, 64, 4, 3), (128, 32, 4, 3), (128, 64, 4, 3), (64, 128, 4, 3), (128, 128, 8, 3),
)  # fmt: skip


# ---- on the device ---------------------------------------------------------------------------------------------------


@triton.jit
def _plan_tiles(start, tile_expert, tile_first, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """Writes the tiles of one expert behind those of the experts before it."""
    expert = tl.program_id(0)
    other_E = tl.arange(0, BLOCK_E)
    before_E = other_E < expert
    rows_E = tl.load(start + other_E + 1, mask=before_E, other=0) - tl.load(start + other_E, mask=before_E, other=0)
    tile = tl.sum(tl.cdiv(rows_E, BLOCK_R))
    for first in range(tl.load(start + expert), tl.load(start + expert + 1), BLOCK_R):
        tl.store(tile_expert + tile, expert)
        tl.store(tile_first + tile, first)
        tile += 1


@triton.jit
def _rows(first, end, order, slots_a_token, BLOCK_R: tl.constexpr):
    """Rows from `first` on, their slots and tokens (64 bits: offsets grow big), and which rows lie before `end`."""
    row_R = first + tl.arange(0, BLOCK_R).to(tl.int64)
    real_R = row_R < end
    slot_R = tl.load(order + row_R, mask=real_R, other=0)
    return row_R, slot_R, slot_R // slots_a_token, real_R


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _product(
    a_R1, real_R1, b, stride_d, stride_n, column_N, depth, width,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """sum_d a[r, d] b[d, n] for rows whose addresses are `a_R1` and the columns `column_N` of `b`, in fp32."""
    acc_RN = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    inside_1N = (column_N < width)[None, :]
    for first in range(0, depth, BLOCK_D):
        d_D = first + tl.arange(0, BLOCK_D)
        a_RD = tl.load(a_R1 + d_D[None, :], mask=real_R1 & (d_D < depth)[None, :], other=0.0)
        b_DN = tl.load(
            b + d_D[:, None] * stride_d + column_N[None, :] * stride_n,
            mask=(d_D < depth)[:, None] & inside_1N,
            other=0.0,
        )
        acc_RN = _dot(a_RD, b_DN, acc_RN, PRECISION)
    return acc_RN


@triton.jit
def _normal_cdf(z):
    return 0.5 * (1.0 + tl.math.erf(z * 0.7071067811865476))


@_tuned_product
@triton.jit
def _first_layer(
    x, w_in, b_in, before, hidden, tile_expert, tile_first, start, order, slots_a_token, depth, width,
    KEEP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """hidden[r] = GELU(x[token of r] w_in + b_in); with KEEP also what the GELU was applied to."""
    blocks = tl.cdiv(width, BLOCK_N)
    tile = tl.program_id(0) // blocks
    expert = tl.load(tile_expert + tile).to(tl.int64)
    if expert < 0:
        return
    end = tl.load(start + expert + 1)
    row_R, _, token_R, real_R = _rows(tl.load(tile_first + tile), end, order, slots_a_token, BLOCK_R)
    column_N = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    acc_RN = _product(
        x + token_R[:, None] * depth, real_R[:, None], w_in + expert * depth * width, width, 1, column_N, depth, width,
        PRECISION, BLOCK_R, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    z_RN = acc_RN + tl.load(b_in + expert * width + column_N, mask=column_N < width, other=0.0).to(tl.float32)[None, :]
    at_RN = row_R[:, None] * width + column_N[None, :]
    inside_RN = real_R[:, None] & (column_N < width)[None, :]
    if KEEP:
        tl.store(before + at_RN, z_RN, mask=inside_RN)
    tl.store(hidden + at_RN, z_RN * _normal_cdf(z_RN), mask=inside_RN)


@_tuned_product
@triton.jit
def _second_layer(
    a, w, b_out, weight, out, tile_expert, tile_first, start, order, slots_a_token, depth, width, stride_d, stride_n,
    GATED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[slot of r] = a[r] w, or, GATED, its gate times (a[r] w + b_out). Empty slots are not written."""
    blocks = tl.cdiv(width, BLOCK_N)
    tile = tl.program_id(0) // blocks
    expert = tl.load(tile_expert + tile).to(tl.int64)
    if expert < 0:
        return
    end = tl.load(start + expert + 1)
    row_R, slot_R, _, real_R = _rows(tl.load(tile_first + tile), end, order, slots_a_token, BLOCK_R)
    column_N = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    out_RN = _product(
        a + row_R[:, None] * depth, real_R[:, None], w + expert * depth * width, stride_d, stride_n, column_N,
        depth, width, PRECISION, BLOCK_R, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    if GATED:
        bias_N = tl.load(b_out + expert * width + column_N, mask=column_N < width, other=0.0).to(tl.float32)
        gate_R = tl.load(weight + slot_R, mask=real_R, other=0.0).to(tl.float32)
        out_RN = (out_RN + bias_N[None, :]) * gate_R[:, None]
    inside_RN = real_R[:, None] & (column_N < width)[None, :]
    tl.store(out + slot_R[:, None] * width + column_N[None, :], out_RN, mask=inside_RN)


@triton.jit(do_not_specialize=["tokens"])
def _sum_slots(
    out, expert, y, tokens, width, SLOTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """y[m] = the sum of token m's filled slots, always in the same order."""
    blocks = tl.cdiv(width, BLOCK_N)
    token_M = tl.program_id(0).to(tl.int64) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    column_N = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_MN = (token_M < tokens)[:, None] & (column_N < width)[None, :]
    acc_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(SLOTS):
        slot_M = token_M * SLOTS + k
        filled_M = tl.load(expert + slot_M, mask=token_M < tokens, other=-1) >= 0
        at_MN = slot_M[:, None] * width + column_N[None, :]
        acc_MN += tl.load(out + at_MN, mask=inside_MN & filled_M[:, None], other=0.0).to(tl.float32)
    tl.store(y + token_M[:, None] * width + column_N[None, :], acc_MN, mask=inside_MN)


@_tuned_hidden_gradient
@triton.jit
def _hidden_gradient(
    dy, w_out, b_out, weight, before, dweight, dbefore, hidden,
    tile_expert, tile_first, start, order, slots_a_token, depth, width,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of the gates and of what the GELU was applied to; and the hidden units once more.

    A gate's gradient is dy . (h w_out + b_out) = h . (dy w_out^T) + dy . b_out, which needs no output row. One program
    walks over all hidden units of its rows, so that the sum is complete without atomics. `width` is H, `depth` is C.
    """
    expert = tl.load(tile_expert + tl.program_id(0)).to(tl.int64)
    if expert < 0:
        return
    end = tl.load(start + expert + 1)
    row_R, slot_R, token_R, real_R = _rows(tl.load(tile_first + tl.program_id(0)), end, order, slots_a_token, BLOCK_R)
    dy_R1 = dy + token_R[:, None] * depth
    gate_R = tl.load(weight + slot_R, mask=real_R, other=0.0).to(tl.float32)
    dgate_R = tl.zeros((BLOCK_R,), tl.float32)
    for first in range(0, depth, BLOCK_D):
        d_D = first + tl.arange(0, BLOCK_D)
        dy_RD = tl.load(dy_R1 + d_D[None, :], mask=real_R[:, None] & (d_D < depth)[None, :], other=0.0)
        bias_D = tl.load(b_out + expert * depth + d_D, mask=d_D < depth, other=0.0)
        dgate_R += tl.sum(dy_RD.to(tl.float32) * bias_D.to(tl.float32)[None, :], axis=1)
    for first in range(0, width, BLOCK_N):
        column_N = first + tl.arange(0, BLOCK_N)
        dhidden_RN = _product(
            dy_R1, real_R[:, None], w_out + expert * depth * width, 1, depth, column_N, depth, width,
            PRECISION, BLOCK_R, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        at_RN = row_R[:, None] * width + column_N[None, :]
        inside_RN = real_R[:, None] & (column_N < width)[None, :]
        z_RN = tl.load(before + at_RN, mask=inside_RN, other=0.0).to(tl.float32)
        cdf_RN = _normal_cdf(z_RN)
        dgate_R += tl.sum(z_RN * cdf_RN * dhidden_RN, axis=1)
        slope_RN = cdf_RN + z_RN * 0.3989422804014327 * tl.exp(-0.5 * z_RN * z_RN)
        tl.store(dbefore + at_RN, gate_R[:, None] * dhidden_RN * slope_RN, mask=inside_RN)
        tl.store(hidden + at_RN, z_RN * cdf_RN, mask=inside_RN)
    tl.store(dweight + slot_R, dgate_R, mask=real_R)


@_tuned_weight_gradient
@triton.jit
def _weight_gradient(
    a, b, weight, dw, db, start, order, slots_a_token, height, width,
    FIRST: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dw = sum_r a[r]^T b[r] and db = sum_r b[r] of one expert; zeros for an expert without rows.

    FIRST layer: a is x, gathered by token, b the gradient per row. Second layer: a is a row's hidden units, b is dy,
    gathered by token and times the row's gate.
    """
    blocks = tl.cdiv(width, BLOCK_N)
    blocks_a = tl.cdiv(height, BLOCK_A)
    expert = tl.program_id(0).to(tl.int64) // (blocks_a * blocks)
    block_a = tl.program_id(0) // blocks % blocks_a
    column_A = block_a * BLOCK_A + tl.arange(0, BLOCK_A)
    column_N = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    acc_AN = tl.zeros((BLOCK_A, BLOCK_N), tl.float32)
    acc_N = tl.zeros((BLOCK_N,), tl.float32)
    end = tl.load(start + expert + 1)
    for first in range(tl.load(start + expert), end, BLOCK_R):
        row_R, slot_R, token_R, real_R = _rows(first, end, order, slots_a_token, BLOCK_R)
        if FIRST:
            a_R, b_R = token_R, row_R
        else:
            a_R, b_R = row_R, token_R
        a_RA = tl.load(
            a + a_R[:, None] * height + column_A[None, :],
            mask=real_R[:, None] & (column_A < height)[None, :],
            other=0.0,
        )
        b_RN = tl.load(
            b + b_R[:, None] * width + column_N[None, :], mask=real_R[:, None] & (column_N < width)[None, :], other=0.0
        )
        if not FIRST:
            gate_R = tl.load(weight + slot_R, mask=real_R, other=0.0).to(tl.float32)
            b_RN = (b_RN.to(tl.float32) * gate_R[:, None]).to(a_RA.dtype)
        acc_N += tl.sum(b_RN.to(tl.float32), axis=0)
        acc_AN = _dot(tl.trans(a_RA), b_RN, acc_AN, PRECISION)
    inside_AN = (column_A < height)[:, None] & (column_N < width)[None, :]
    tl.store(dw + (expert * height + column_A[:, None]) * width + column_N[None, :], acc_AN, mask=inside_AN)
    if block_a == 0:
        tl.store(db + expert * width + column_N, acc_N, mask=column_N < width)


# ---- on the host -----------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """Which rows each expert has, and the tiles that cover them; all of it on the device."""

    order_S: Tensor  # slots sorted by expert, int64; what follows the last row is empty slots
    start_E: Tensor  # first row of each expert, and at the end the number of rows; int32
    expert_T: Tensor  # -1 beyond the last tile
    first_T: Tensor
    block: int  # rows per tile
    slots: int  # slots per token

    @classmethod
    def of(cls, expert_MK: Tensor, experts: int) -> _Plan:
        key_S = expert_MK.flatten().to(torch.int32)
        assert len(key_S) < 2**31, "rows are counted in 32 bits"
        key_S, order_S = key_S.masked_fill(key_S < 0, experts).sort(stable=True)
        bounds_E = torch.arange(experts + 1, dtype=torch.int32, device=key_S.device)
        start_E = torch.searchsorted(key_S, bounds_E, out_int32=True)
        # About the rows that an expert gets: shorter tiles read its weights more often, longer ones multiply zeros.
        block = min(128, max(16, triton.next_power_of_2(len(key_S) // experts)))
        tiles = len(key_S) // block + min(experts, len(key_S))
        tiles += -tiles % 4  # whole 16 bytes, or the second half is aligned differently and all is compiled anew
        expert_T, first_T = torch.full((2, tiles), -1, dtype=torch.int32, device=key_S.device)
        _plan_tiles[(experts,)](
            start_E, expert_T, first_T, BLOCK_R=block, BLOCK_E=triton.next_power_of_2(experts), num_warps=1
        )
        return cls(order_S, start_E, expert_T, first_T, block, expert_MK.shape[1])

    def hidden(self, x_MC: Tensor, w_in_ECH: Tensor, b_in_EH: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """`hidden_RH` and, if it is to be kept, what its GELU was applied to."""
        _, channels, width = w_in_ECH.shape
        hidden_RH = x_MC.new_empty(len(self.order_S), width)
        # Not None, which the tuner would take for another problem: evaluation must choose as training does.
        before_RH = torch.empty_like(hidden_RH) if keep else hidden_RH
        self._run(
            _first_layer, width,
            x_MC, w_in_ECH, b_in_EH, before_RH, hidden_RH, *self._tiles, channels, width,
            KEEP=keep, PRECISION=_precision(x_MC),
        )  # fmt: skip
        return hidden_RH, before_RH

    def outputs(
        self,
        a_RD: Tensor,
        w_EDN: Tensor,
        expert_MK: Tensor,
        b_EN: Optional[Tensor] = None,
        weight_MK: Optional[Tensor] = None,
    ) -> Tensor:
        """`y_MN`, of each token the sum over its rows of a_r w, or with bias and gates of weight_r (a_r w + b)."""
        _, depth, width = w_EDN.shape
        out_SN = a_RD.new_empty(len(self.order_S), width)
        self._run(
            _second_layer, width,
            a_RD, w_EDN, b_EN, weight_MK, out_SN, *self._tiles, depth, width, w_EDN.stride(1), w_EDN.stride(2),
            GATED=weight_MK is not None, PRECISION=_precision(a_RD),
        )  # fmt: skip
        y_MN = a_RD.new_empty(len(expert_MK), width)
        block_m, block_n = 16, min(128, triton.next_power_of_2(width))
        grid = (triton.cdiv(len(y_MN), block_m) * triton.cdiv(width, block_n),)
        _sum_slots[grid](out_SN, expert_MK, y_MN, len(y_MN), width, SLOTS=self.slots, BLOCK_M=block_m, BLOCK_N=block_n)
        return y_MN

    def hidden_gradient(
        self, dy_MC: Tensor, w_out_EHC: Tensor, b_out_EC: Tensor, weight_MK: Tensor, before_RH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of `weight_MK` and of `before_RH`, and `hidden_RH` again."""
        _, width, channels = w_out_EHC.shape
        dweight_MK = torch.zeros_like(weight_MK)
        dbefore_RH, hidden_RH = torch.empty_like(before_RH), torch.empty_like(before_RH)
        _hidden_gradient[(len(self.expert_T),)](
            dy_MC, w_out_EHC, b_out_EC, weight_MK, before_RH, dweight_MK, dbefore_RH, hidden_RH,
            *self._tiles, channels, width, PRECISION=_precision(dy_MC), BLOCK_R=self.block,
        )  # fmt: skip
        return dweight_MK, dbefore_RH, hidden_RH

    def weight_gradient(self, a: Tensor, b: Tensor, weight_MK: Optional[Tensor]) -> tuple[Tensor, Tensor]:
        """The gradients of a layer's weight and bias: of the first without `weight_MK`, of the second with it."""
        experts, height, width = len(self.start_E) - 1, a.shape[1], b.shape[1]
        dw, db = a.new_empty(experts, height, width), a.new_empty(experts, width)

        def grid(meta: dict) -> tuple[int]:
            return (experts * triton.cdiv(height, meta["BLOCK_A"]) * triton.cdiv(width, meta["BLOCK_N"]),)

        _weight_gradient[grid](
            a, b, weight_MK, dw, db, self.start_E, self.order_S, self.slots, height, width,
            FIRST=weight_MK is None, PRECISION=_precision(a), BLOCK_R=min(64, self.block),
        )  # fmt: skip
        return dw, db

    @property
    def _tiles(self) -> tuple:
        return self.expert_T, self.first_T, self.start_E, self.order_S, self.slots

    def _run(self, kernel, width: int, *arguments, **options) -> None:
        """All tiles, each split into blocks of its `width` columns."""
        tiles = len(self.expert_T)
        kernel[lambda meta: (tiles * triton.cdiv(width, meta["BLOCK_N"]),)](*arguments, BLOCK_R=self.block, **options)


def _precision(a: Tensor) -> str:
    """How fp32 factors are multiplied: as cuBLAS was told to, which unless told is exactly."""
    return "tf32" if a.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


class _FusedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keep: bool, x_MC: Tensor, weight_MK: Tensor, expert_MK: Tensor, *bank: Tensor) -> Tensor:
        w_in_ECH, b_in_EH, w_out_EHC, b_out_EC = bank
        ctx.empty = expert_MK.numel() == 0
        if ctx.empty:  # nothing to launch, or to tune on
            ctx.save_for_backward(x_MC, weight_MK, *bank)
            return torch.zeros_like(x_MC)
        with torch.cuda.device_of(x_MC):
            plan = _Plan.of(expert_MK, len(w_in_ECH))
            hidden_RH, before_RH = plan.hidden(x_MC, w_in_ECH, b_in_EH, keep)
            y_MC = plan.outputs(hidden_RH, w_out_EHC, expert_MK, b_out_EC, weight_MK)
        if keep:
            ctx.block, ctx.slots = plan.block, plan.slots
            ctx.save_for_backward(x_MC, weight_MK, expert_MK, *bank, before_RH, *plan[:4])
        return y_MC

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_MC: Tensor):
        if ctx.empty:
            dx_MC, dweight_MK, *dbank = (torch.zeros_like(tensor) for tensor in ctx.saved_tensors)
            return None, dx_MC, dweight_MK, None, *dbank
        x_MC, weight_MK, expert_MK, w_in_ECH, _, w_out_EHC, b_out_EC, before_RH, *plan = ctx.saved_tensors
        plan, dy_MC = _Plan(*plan, ctx.block, ctx.slots), dy_MC.contiguous()
        with torch.cuda.device_of(x_MC):
            dweight_MK, dbefore_RH, hidden_RH = plan.hidden_gradient(dy_MC, w_out_EHC, b_out_EC, weight_MK, before_RH)
            dw_out_EHC, db_out_EC = plan.weight_gradient(hidden_RH, dy_MC, weight_MK)
            dw_in_ECH, db_in_EH = plan.weight_gradient(x_MC, dbefore_RH, None)
            dx_MC = plan.outputs(dbefore_RH, w_in_ECH.transpose(1, 2), expert_MK)
        return None, dx_MC, dweight_MK, None, dw_in_ECH, db_in_EH, dw_out_EHC, db_out_EC


def fused(x_MC: Tensor, weight_MK: Tensor, expert_MK: Tensor, bank: FFNWeights) -> Tensor:
    """The kernel `triton` of kernels/__init__.py: fp32, bf16 or fp16 rows, on a CUDA device or in Triton's interpreter.

    Repeatable bit for bit within a process. The interpreter wants TRITON_INTERPRET=1 before the first import of this
    module.
    """
    assert x_MC.dtype in (torch.float32, torch.bfloat16, torch.float16), x_MC.dtype
    bank = [stack.to(x_MC.dtype).contiguous() for stack in bank]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x_MC, weight_MK, *bank))
    return _FusedExperts.apply(keep, x_MC.contiguous(), weight_MK.contiguous(), expert_MK.contiguous(), *bank)
