"""Settings of the routed, shared and global experts, and what of them cannot go together. No torch unless it must."""

from __future__ import annotations

from typing import Annotated, Iterator, Literal

from pydantic import Field

from fgmoe_dist.experts.kernels import AUTO, kernel_names, unfit, widths_of
from fgmoe_dist.experts.kernels.fitness import Place
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.settings import Section

TOKEN = "token"  # the router unless another is named
# Balance losses whose weight is a setting of its own: these are always computed, and logged.
OWN_WEIGHT = {"balance": "balance_weight", "z": "z_weight", "device_balance": "device_balance_weight"}

# What DeepSpeed's and fairscale's layers can do of `Experts`; how they drop tokens is their own affair.
STOCK_ROUTING = {
    "bank": "task", "router": TOKEN, "score": "softmax", "shared_gate": "none", "noise": 0.0, "kernel": AUTO,
    "bias_update_rate": 0.0, "max_ranks_per_token": 0, "capacity_factor": 0.0,
}  # fmt: skip


class Experts(Section):
    count: int = Field(4, ge=1, description="N, unsplit routed experts a task")
    split: int = Field(
        4, ge=1, description="m, parts each expert's hidden dimension is split into; N*m routed fine experts a task"
    )
    hidden: int = Field(256, ge=1, description="H, hidden size of an unsplit expert; a fine expert has H/m")
    kind: str = Field("ffn", description="what an expert computes. ffn: an MLP; lora: B A x, with rank H/m")
    bank: Literal["task", "shared"] = Field(
        "task", description="task: each task has N*m routed experts; shared: all tasks route over the same N*m"
    )
    router: str = Field(
        TOKEN, description="who chooses experts. token: each token for itself; image: all tokens of an image together"
    )
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
    balance_losses: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="weights of further balance losses by name (pooled)"
    )
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
    kernel: str = Field(
        AUTO, description="how a rank computes its experts: auto, reference, cpu, grouped, triton (fused only)"
    )

    @property
    def routed(self) -> int:
        """N', routed fine experts a task."""
        return self.count * self.split

    @property
    def fine_hidden(self) -> int:
        """Hidden size of one fine expert, H/m."""
        return self.hidden // self.split

    def banks(self, tasks: int) -> int:
        """Sets of N' routed experts in a block."""
        return 1 if self.bank == "shared" else tasks

    def balance_weights(self) -> dict[str, float]:
        """The weight of each balance loss that is computed, by its name in `balance.BALANCE`."""
        return {**{name: getattr(self, key) for name, key in OWN_WEIGHT.items()}, **self.balance_losses}

    def conflicts(self, channels: int, ep_size: int, precision: str) -> list[str]:
        """Every contradiction, one line each, in a decoder of so many channels."""
        return [*self._unknown(), *self._misplaced(ep_size), *self._impossible(channels, precision)]

    def _unknown(self) -> Iterator[str]:
        """Names that stand for nothing."""
        known = {"kind": list(KINDS), "kernel": [AUTO, *kernel_names()]}
        if self.router != TOKEN:
            from fgmoe_dist.experts.routers import ROUTERS  # brings torch

            known["router"] = list(ROUTERS)
        for key, names in known.items():
            if (value := getattr(self, key)) not in names:
                yield f"experts.{key}={value}: there is no such {key}; name one of {', '.join(names)}"
        if self.balance_losses:
            from fgmoe_dist.experts.balance import BALANCE  # brings torch

            free = [name for name in BALANCE if name not in OWN_WEIGHT]
            for name in self.balance_losses:
                if name in OWN_WEIGHT:
                    yield f"experts.balance_losses.{name}: set experts.{OWN_WEIGHT[name]} in its place"
                elif name not in BALANCE:
                    yield f"experts.balance_losses.{name}: there is no such loss; name one of {', '.join(free)}"

    def _misplaced(self, ep_size: int) -> Iterator[str]:
        """Where experts live, and which of them a token may reach."""
        groups = self.groups or ep_size
        if self.hidden % self.split:
            yield f"experts.hidden={self.hidden} is not divisible by experts.split={self.split}"
        if self.top_k > self.routed:
            yield f"experts.top_k={self.top_k} exceeds the {self.routed} routed experts (count x split); lower it"
        if self.routed % ep_size:
            yield f"parallel.ep_size={ep_size} does not divide the {self.routed} routed experts a task (count x split)"
        if self.groups and self.routed % self.groups:
            yield (
                f"experts.groups={self.groups} does not divide the {self.routed} routed experts a task; choose one"
                " that does"
            )
        elif self.groups % ep_size:
            yield (
                f"experts.groups={self.groups} is not a multiple of parallel.ep_size={ep_size}:"
                f" a group would lie on two ranks; set experts.groups={ep_size}"
            )
        if self.groups and self.max_ranks_per_token > self.groups:
            yield (
                f"experts.max_ranks_per_token={self.max_ranks_per_token} limits nothing: there are"
                f" {self.groups} groups; lower it, or set it to 0"
            )
        reached = min(self.max_ranks_per_token, groups) * (self.routed // groups)
        if 0 < reached < self.top_k <= self.routed:
            yield (
                f"experts.max_ranks_per_token={self.max_ranks_per_token} leaves a token {reached} of the"
                f" {self.routed} routed experts, fewer than experts.top_k={self.top_k}; raise it or lower top_k"
            )

    def _impossible(self, channels: int, precision: str) -> Iterator[str]:
        """What routers, backends and kernels cannot do."""
        if self.shared_gate == "joint" and self.score != "softmax":
            yield "experts.shared_gate=joint is one softmax; set experts.score=softmax"
        if self.kind in KINDS and self.kernel in kernel_names():
            # Each width alone, so that all that do not fit are told; the device is not known yet.
            widths = widths_of(channels, self.fine_hidden).items()
            reasons = [unfit(self.kind, self.kernel, Place("", precision, {key: width})) for key, width in widths]
            for reason in dict.fromkeys(filter(None, reasons)):
                yield f"experts.kernel={self.kernel} {reason}, or set experts.kernel=auto"
        if self.backend != "fused":
            for key, wanted in STOCK_ROUTING.items():
                if (value := getattr(self, key)) != wanted:
                    yield f"experts.{key}={value} needs experts.backend=fused; the stock layers have only {wanted}"
        if self.backend == "fairscale" and (self.top_k != 2 or not self.renormalise):
            yield (
                "experts.backend=fairscale has a renormalised top-2 gate only; set experts.top_k=2"
                " experts.renormalise=true"
            )
        if self.backend == "fairscale" and precision != "fp32":
            yield "experts.backend=fairscale computes in fp32 only; set train.precision=fp32"
