"""An engine: plain autograd on several ranks, each with the whole model; gradients are averaged once per step."""

import torch
import torch.distributed as dist

from fgmoe_dist.errors import UserError
from fgmoe_dist.training.engines import ENGINES
from fgmoe_dist.training.engines.plain import PlainEngine


def prepare(ep_size):
    """Called before the model is built."""
    if ep_size > 1:
        raise UserError(f"parallel.ep_size={ep_size}: parallel.engine=averaging has whole copies only; set it to 1")


def create_engine(decoder, config):
    return Averaging(decoder, config)


class Averaging(PlainEngine):
    def __init__(self, decoder, config):
        super().__init__(decoder, config)
        self.accumulation //= dist.get_world_size()

    def average_gradients(self):
        for parameter in self.parameters:
            if parameter.grad is None:  # it had no part here, but perhaps on another rank
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


ENGINES["averaging"] = __name__  # the module that has `prepare` and `create_engine`
