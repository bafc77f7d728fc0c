"""Settings of the routed, shared and global experts, and what of them cannot go together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fgmoe_dist.settings import Section

# What DeepSpeed's and fairscale's layers can do of `Experts`; how they drop tokens is their own affair.
STOCK_ROUTING = {
    "score": "softmax", "shared_gate": "none", "noise": 0.0, "kernel": "auto",
    "bias_update_rate": 0.0, "max_ranks_per_token": 0, "capacity_factor": 0.0,
}  # fmt: skip


class Experts(Section):
    count: int = Field(4, ge=1, description="N, unsplit routed experts a task")
    split: int = Field(
        4, ge=1, description="m, parts each expert's hidden dimension is split into; N*m routed fine experts a task"
    )
    hidden: int = Field(256, ge=1, description="H, hidden size of an unsplit expert; a fine expert has H/m")
    top_k: int = Field(4, ge=1, description="k, routed fine experts a token is sent to")
    shared: int = Field(1, ge=0, description="K_s, always-on fine experts a task")
    global_experts: int = Field(
        2, ge=0, description="global experts of hidden size H, mixed by feature and task; 0: none"
    )
    score: Literal["softmax", "sigmoid"] = Field("softmax", description="what turns a router's logits into gates")
    renormalise: bool = Field(
        False, description="divide the k kept gates by their sum (DeepSeekMoE keeps them as they are)"
    )
    shared_gate: Literal["none", "joint"] = Field(
        "none", description="none: shared experts ungated; joint: one softmax over shared and selected logits"
    )
    balance_weight: float = Field(0.003, ge=0, description="a1, weight of the load-balance loss sum f_i P_i")
    groups: int = Field(
        0, ge=0, description="groups of a task's experts that share a device, in order; 0: as many as parallel.ep_size"
    )
    device_balance_weight: float = Field(
        0.0, ge=0, description="a2, weight of the load-balance loss over groups of experts"
    )
    z_weight: float = Field(0.0, ge=0, description="weight of the router z-loss, mean logsumexp(logits)^2")
    bias_update_rate: float = Field(
        0.0,
        ge=0,
        description="balancing without a loss: step of each expert's bias for selection; 0: none (fused only)",
    )
    max_ranks_per_token: int = Field(
        0, ge=0, description="groups of experts, and so ranks, that a token may go to; 0: no limit (fused only)"
    )
    capacity_factor: float = Field(
        0.0,
        ge=0,
        description="an expert takes ceil(factor * k * tokens / N') slots of an image; 0: dropless (fused only)",
    )
    noise: float = Field(0.0, ge=0, description="standard deviation of the noise on training logits")
    backend: Literal["fused", "deepspeed", "fairscale"] = Field(
        "fused",
        description="fused: one dispatch for all tasks; deepspeed, fairscale: those libraries' layers, one a task",
    )
    kernel: Literal["auto", "reference", "cpu", "grouped", "triton"] = Field(
        "auto", description="how a rank computes its experts (fused only)"
    )

    @property
    def routed(self) -> int:
        """N', routed fine experts a task."""
        return self.count * self.split

    @property
    def fine_hidden(self) -> int:
        """Hidden size of one fine expert, H/m."""
        return self.hidden // self.split
