"""fgmoe_dist: expert-parallel training of fine-grained mixtures of experts for dense prediction."""

import os

from fgmoe_dist.threads import calm

__version__ = "0.1.0"

calm(os.environ)  # here, as whoever imports anything of this package comes by before torch is loaded
