"""Settings of the routed, shared and global experts."""

from __future__ import annotations

from typing import Annotated, Literal, Optional

from pydantic import Field

from fgmoe_dist.settings import Section

# Balance losses whose weight is a setting of its own: these are always computed, and logged.
OWN_WEIGHT = {"balance": "balance_weight", "z": "z_weight", "device_balance": "device_balance_weight"}

# What no machine holds: a number beyond is a slip of the finger.
MOST_EXPERTS, MOST_HIDDEN = 2**20, 2**22


class Experts(Section):
    count: int = Field(4, ge=1, le=MOST_EXPERTS, description="N, unsplit routed experts per task")
    split: int = Field(
        4,
        ge=1,
        le=MOST_EXPERTS,
        description="m, parts each expert's hidden dimension is split into; N*m routed fine experts per task",
    )
    hidden: int = Field(
        256, ge=1, le=MOST_HIDDEN, description="H, hidden size of an unsplit expert; a fine expert has H/m"
    )
    kind: str = Field(
        "ffn",
        description="what an expert computes. ffn: an MLP; lora: B A x, with rank H/m; conv_lora: the same with a 3x3"
        " convolution for A (router image); rank_one: b_j (a_i . x) for each of N a_i and m b_j (H = m)",
    )
    bank: Literal["task", "shared"] = Field(
        "task", description="task: each task has N*m routed experts; shared: all tasks route over the same N*m"
    )
    router: str = Field(
        "token",
        description="who chooses. token: each token its experts; image: all tokens of an image together; expert: each"
        " expert its tokens of an image, k N/N' of N",
    )
    condition: Literal["none", "embedding", "film"] = Field(
        "none",
        description="none: a router for each task; embedding, film: one for all tasks, which knows the task by a learnt"
        " vector beside the token, or by a learnt scale and shift of its channels",
    )
    router_init: Literal["normal", "zero"] = Field("normal", description="a router's first weights")
    task_embedding: bool = Field(False, description="each task adds a learnt vector to its tokens before every block")
    closed_share: float = Field(
        0.0, ge=0, le=1, description="share of a shared bank's experts that are closed to some tasks, drawn by run.seed"
    )
    closing: Literal["exclusive", "excluded"] = Field(
        "exclusive", description="exclusive: a closed expert is one task's alone; excluded: it is all others'"
    )
    kept: list[list[list[Annotated[int, Field(ge=0)]]]] = Field(
        [],
        description="of a pruned model (fgmoe prune): for each block, and in it for each task's bank or the shared one,"
        " the routed experts that are left; empty: all",
    )
    top_k: int = Field(4, ge=1, le=MOST_EXPERTS, description="k, routed fine experts a token is sent to")
    shared: int = Field(1, ge=0, le=MOST_EXPERTS, description="K_s, always-on fine experts per task")
    global_experts: int = Field(
        2, ge=0, le=MOST_EXPERTS, description="global experts of hidden size H, mixed by feature and task; 0: none"
    )
    global_input: Literal["aggregated", "tasks"] = Field(
        "aggregated",
        description="what global experts read. aggregated: the feature that all tasks start from; tasks: the"
        " features of all tasks, weighed by feature and task, so that what one has found reaches another",
    )
    score: Literal["softmax", "sigmoid"] = Field("softmax", description="what turns a router's logits into gates")
    renormalise: bool = Field(
        False,
        description="divide the k kept gates by their sum, which of softmax scores is a softmax after selection"
        " (DeepSeekMoE keeps them as they are)",
    )
    gate_scale: float = Field(1.0, gt=0, description="factor on the gates of routed experts")
    shared_gate: Literal["none", "joint"] = Field(
        "none", description="none: shared experts ungated; joint: one softmax over shared and selected logits"
    )
    balance_weight: float = Field(0.003, ge=0, description="a1, weight of the load-balance loss sum f_i P_i")
    groups: int = Field(
        0,
        ge=0,
        le=MOST_EXPERTS,
        description="groups of a task's experts that share a device, in order; 0: as many as parallel.ep_size",
    )
    device_balance_weight: float = Field(
        0.0, ge=0, description="a2, weight of the load-balance loss over groups of experts"
    )
    z_weight: float = Field(0.0, ge=0, description="weight of the router z-loss, mean logsumexp(logits)^2")
    balance_losses: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="weights of further losses of routers by name (pooled, importance, load, mutual_information,"
        " entropy)",
    )
    bias_update_rate: float = Field(
        0.0,
        ge=0,
        description="balancing without a loss: step of each expert's bias for selection; 0: none (fused only)",
    )
    max_ranks_per_token: int = Field(
        0,
        ge=0,
        le=MOST_EXPERTS,
        description="groups of experts, and so ranks, that a token may go to; 0: no limit (fused only)",
    )
    capacity_factor: float = Field(
        0.0,
        ge=0,
        description="an expert takes ceil(factor * k * tokens / N') slots of an image; 0: dropless (fused only)",
    )
    noise: float = Field(0.0, ge=0, description="standard deviation of the noise on training logits")
    noise_kind: Literal["fixed", "raw", "softplus"] = Field(
        "fixed",
        description="fixed: noise is for selection alone; raw, softplus: the router learns a token's deviations, x w or"
        " softplus(x w) + 0.01, noise is a factor on them, and gates see it too",
    )
    diversity: int = Field(
        0,
        ge=0,
        le=2**16,
        description="tokens of each task on which the distance between the routed experts' outputs is logged; 0: none",
    )
    backend: str = Field(
        "fused",
        description="fused: one dispatch for all tasks; deepspeed, fairscale: those libraries' layers, one per task",
    )
    kernel: str = Field(
        "auto", description="how a rank computes its experts: auto, reference, cpu, grouped, triton (fused only)"
    )

    @property
    def routed(self) -> int:
        """N', routed fine experts per task."""
        return self.count * self.split

    @property
    def fine_hidden(self) -> int:
        """Hidden size of one fine expert, H/m."""
        return self.hidden // self.split

    @property
    def crosses_tasks(self) -> bool:
        """Whether what a block makes of a task depends on the features of the others."""
        return self.global_experts > 0 and self.global_input == "tasks"

    def banks(self, tasks: int) -> int:
        """Sets of N' routed experts in a block."""
        return 1 if self.bank == "shared" else tasks

    def balance_weights(self) -> dict[str, float]:
        """The weight of each balance loss that is computed, by its name in `balance.BALANCE`."""
        return {**{name: getattr(self, key) for name, key in OWN_WEIGHT.items()}, **self.balance_losses}


def kept_experts(config: Experts, block: int) -> Optional[list[list[int]]]:
    """Of each bank of a block the routed experts that are left; None where none was pruned."""
    return config.kept[block] if config.kept else None
