"""What of the experts' settings cannot go together."""

from __future__ import annotations

from typing import Iterator

from fgmoe_dist.experts.backends import BACKENDS
from fgmoe_dist.experts.balance import BALANCE
from fgmoe_dist.experts.kernels import AUTO, kernel_names, unfit, widths_of
from fgmoe_dist.experts.kernels.fitness import Place
from fgmoe_dist.experts.kinds import KINDS
from fgmoe_dist.experts.routers import ROUTERS
from fgmoe_dist.experts.settings import OWN_WEIGHT, Experts
from fgmoe_dist.plugins import HINT


def conflicts(experts: Experts, channels: int, ep_size: int, precision: str) -> list[str]:
    """Every contradiction, one line each, in a decoder of so many channels; `precision` is fp32 or bf16.

    A line names every setting that it depends on in full: where one of them was faulty itself, the line is left out.
    """
    return [
        *_unknown(experts), *_misplaced(experts, ep_size), *_impossible(experts, channels, precision), *_idle(experts)
    ]  # fmt: skip


def _unknown(experts: Experts) -> Iterator[str]:
    """Names that stand for nothing."""
    known = {"kind": KINDS, "router": ROUTERS, "backend": BACKENDS, "kernel": [AUTO, *kernel_names()]}
    for key, names in known.items():
        if (value := getattr(experts, key)) not in names:
            yield f"experts.{key}={value}: there is no such {key}; name one of {', '.join(names)}{HINT}"
    free = [name for name in BALANCE if name not in OWN_WEIGHT]
    for name in experts.balance_losses:
        if name in OWN_WEIGHT:
            yield f"experts.balance_losses.{name}: set experts.{OWN_WEIGHT[name]} in its place"
        elif name not in BALANCE:
            yield f"experts.balance_losses.{name}: there is no such loss; name one of {', '.join(free)}{HINT}"


def _misplaced(experts: Experts, ep_size: int) -> Iterator[str]:
    """Where experts live, and which of them a token may reach."""
    groups, product = experts.groups or ep_size, "experts.count x experts.split"
    if experts.hidden % experts.split:
        yield f"experts.hidden={experts.hidden} is not divisible by experts.split={experts.split}"
    if experts.top_k > experts.routed:
        yield f"experts.top_k={experts.top_k} exceeds the {experts.routed} routed experts ({product}); lower it"
    if experts.routed % ep_size:
        yield f"parallel.ep_size={ep_size} does not divide the {experts.routed} routed experts a task ({product})"
    if experts.kind in KINDS and KINDS[experts.kind].pairs:
        if experts.hidden != experts.split:
            yield (
                f"experts.kind={experts.kind}: an expert is a pair of vectors, of rank 1; set experts.hidden="
                f"{experts.hidden} to experts.split={experts.split}"
            )
        if experts.count % ep_size:
            yield (
                f"parallel.ep_size={ep_size} does not divide experts.count={experts.count}, the vectors that"
                f" experts.kind={experts.kind} spreads over ranks"
            )
    if experts.groups and experts.routed % experts.groups:
        yield (
            f"experts.groups={experts.groups} does not divide the {experts.routed} routed experts a task ({product});"
            " choose one that does"
        )
    elif experts.groups % ep_size:
        yield (
            f"experts.groups={experts.groups} is not a multiple of parallel.ep_size={ep_size}:"
            f" a group would lie on two ranks; set experts.groups={ep_size}"
        )
    if experts.groups and experts.max_ranks_per_token > experts.groups:
        yield (
            f"experts.max_ranks_per_token={experts.max_ranks_per_token} limits nothing: there are"
            f" {experts.groups} groups; lower it, or set it to 0"
        )
    reached = min(experts.max_ranks_per_token, groups) * (experts.routed // groups)
    if 0 < reached < experts.top_k <= experts.routed:
        yield (
            f"experts.max_ranks_per_token={experts.max_ranks_per_token} leaves a token {reached} of the"
            f" {experts.routed} routed experts ({product}, in {groups} groups by experts.groups or"
            f" parallel.ep_size), fewer than experts.top_k={experts.top_k}; raise it or lower top_k"
        )


def _impossible(experts: Experts, channels: int, precision: str) -> Iterator[str]:
    """What gates, kernels and backends cannot do."""
    if experts.shared_gate == "joint" and experts.score != "softmax":
        yield "experts.shared_gate=joint is one softmax; set experts.score=softmax"
    if experts.kind in KINDS and experts.kernel in kernel_names():
        # Each width alone, so that all that do not fit are told; the device is not known yet.
        widths = widths_of(channels, experts.fine_hidden).items()
        reasons = [unfit(experts.kind, experts.kernel, Place("", precision, {key: width})) for key, width in widths]
        for reason in dict.fromkeys(filter(None, reasons)):
            yield f"experts.kernel={experts.kernel} {reason}, or set experts.kernel=auto"
    if experts.kind == "conv_lora":
        if experts.router != "image":
            yield (
                f"experts.router={experts.router}: experts.kind=conv_lora reads a token's neighbours, so that images"
                " have to come whole; set experts.router=image"
            )
        if experts.capacity_factor:
            yield (
                f"experts.capacity_factor={experts.capacity_factor}: experts.kind=conv_lora takes images whole; set"
                " it to 0"
            )
    if experts.backend in BACKENDS:
        yield from BACKENDS[experts.backend].conflicts(experts, precision)


# What the router `expert` has no use for: it selects no experts for a token.
EXPERT_CHOICE = {
    "noise": 0.0, "bias_update_rate": 0.0, "max_ranks_per_token": 0, "capacity_factor": 0.0, "shared_gate": "none",
}  # fmt: skip


def _idle(experts: Experts) -> Iterator[str]:
    """Settings that would do nothing beside others, or what nobody means."""
    if experts.noise_kind != "fixed" and not experts.noise:
        yield f"experts.noise_kind={experts.noise_kind}: experts.noise=0 is its factor; set experts.noise=1"
    if experts.global_input != "aggregated" and not experts.global_experts:
        yield (
            f"experts.global_input={experts.global_input}: experts.global_experts=0 are none to read it; set it to"
            " aggregated"
        )
    if experts.router == "expert":
        for key, wanted in EXPERT_CHOICE.items():
            if (value := getattr(experts, key)) != wanted:
                yield f"experts.{key}={value}: experts.router=expert selects no experts for a token; set it to {wanted}"
    if experts.bank != "shared":
        if "mutual_information" in experts.balance_losses:
            yield (
                "experts.balance_losses.mutual_information: of tasks and the experts that they share; set"
                f" experts.bank=shared in the place of {experts.bank}"
            )
        if experts.closed_share:
            yield (
                f"experts.closed_share={experts.closed_share}: closes experts that tasks share; set"
                f" experts.bank=shared in the place of {experts.bank}"
            )
    if experts.diversity and (experts.backend != "fused" or experts.kind == "conv_lora"):
        yield (
            f"experts.diversity={experts.diversity}: of single tokens and of experts.backend=fused; set it to 0 with"
            f" experts.kind={experts.kind} and experts.backend={experts.backend}"
        )
    if experts.closed_share and experts.max_ranks_per_token:
        yield (
            f"experts.closed_share={experts.closed_share}: with experts.max_ranks_per_token="
            f"{experts.max_ranks_per_token} a token could be left without an open expert; set one of them to 0"
        )


def kept_conflicts(experts: Experts, tasks: int, blocks: int, ep_size: int) -> Iterator[str]:
    """What of `experts.kept` does not fit a decoder of so many tasks and blocks, one line each."""
    if not experts.kept:
        return
    named, banks = f"experts.kept of {len(experts.kept)} blocks", experts.banks(tasks)
    if experts.backend != "fused" or (experts.kind in KINDS and KINDS[experts.kind].pairs):
        yield (
            f"{named}: experts.backend={experts.backend} with experts.kind={experts.kind} cannot do without some"
            " experts; set experts.backend=fused and a kind whose experts stand alone"
        )
    if len(experts.kept) != blocks or any(len(block) != banks for block in experts.kept):
        yield (
            f"{named}: names other banks than the {banks} of each of decoder.blocks={blocks}, by"
            f" experts.bank={experts.bank} and {tasks} tasks; take the configuration that fgmoe prune wrote"
        )
        return
    for number, left in ((b, left) for b, block in enumerate(experts.kept) for left in block):
        if sorted(set(left)) != left or (left and left[-1] >= experts.routed):
            yield (
                f"{named}: block {number} keeps {left}, which are no rising numbers below the {experts.routed} routed"
                " experts (experts.count x experts.split); take the configuration that fgmoe prune wrote"
            )
            return
        if len(left) < experts.top_k:
            few = f"block {number} keeps {len(left)} of a bank, fewer than experts.top_k={experts.top_k}"
            yield f"{named}: {few}; lower it"
            return
    local = experts.routed // ep_size
    for number, block in enumerate(experts.kept):
        held = [sum(e // local == rank for left in block for e in left) for rank in range(ep_size)]
        if len(set(held)) > 1:
            yield (
                f"{named}: with parallel.ep_size={ep_size} ranks would hold {', '.join(map(str, held))} experts of"
                f" block {number}; set parallel.ep_size to 1, or to a number that shares them out evenly"
            )
            return
