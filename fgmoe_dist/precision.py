"""The precisions a configuration names, as torch knows them."""

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
