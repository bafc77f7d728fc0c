"""Train a model: the same job as `fgmoe_dist/train.py`, on this one process.

For several ranks, start it with a launcher: torchrun --nproc-per-node 2 -m fgmoe_dist.cli train --config FILE
"""

from fgmoe_dist.train import add_arguments, run

__all__ = ["add_arguments", "run"]
