"""fgmoe_dist: expert-parallel training of fine-grained mixtures of experts for dense prediction."""

import os

__version__ = "0.1.0"

# torch on a CPU: huge pages for large tensors, or every gradient of the experts costs thousands of page faults. Read
# when it first allocates.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
