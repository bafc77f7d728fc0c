"""Train a model: the same job as `fgmoe_dist/train.py`, on this one process.

fgmoe train --config configs/demo.yaml parallel.ep_size=1 train.steps=20 run.dir=runs/try
fgmoe train --config configs/demo.yaml parallel.ep_size=1 --dry-run --pictures look

For several ranks, start it with a launcher: torchrun --nproc-per-node 2 -m fgmoe_dist.cli train --config FILE
"""

from fgmoe_dist.train import add_arguments, run

__all__ = ["add_arguments", "run"]
