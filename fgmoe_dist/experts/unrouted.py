"""What stands in the routed experts' place while a plan counts a decoder's operations on tensors without data.

Legend: T tasks, N tokens per task, C channels, S shared experts per task.
"""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor, nn

from fgmoe_dist.experts.balance import BalanceTerms
from fgmoe_dist.experts.settings import Experts


class Unrouted(nn.Module):
    """A block's routed experts with nothing routed: it keeps the routers' parameters and costs nothing."""

    def __init__(self, routers: nn.Module, config: Experts):
        super().__init__()
        self.routers, self.joint, self.shared = routers, config.shared_gate == "joint", config.shared

    def dispatch(self, x_TNC: Tensor, *_) -> SimpleNamespace:
        gates_TNS = x_TNC.new_empty(*x_TNC.shape[:2], self.shared) if self.joint else None
        balance = [None] * len(BalanceTerms._fields)
        return SimpleNamespace(routing=SimpleNamespace(shared_TNS=gates_TNS, balance=balance), y_TNC=x_TNC)

    def compute(self, journey: SimpleNamespace) -> None:
        pass

    def combine(self, journey: SimpleNamespace) -> Tensor:
        return journey.y_TNC
