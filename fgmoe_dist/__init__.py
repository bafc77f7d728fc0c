"""fgmoe_dist: expert-parallel training of fine-grained mixtures of experts for dense prediction."""

__version__ = "0.1.0"
