"""Optimisers by the name that `train.optimizer` takes; both keep `exp_avg` and `exp_avg_sq`, which checkpoints name."""

import torch

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
