"""What predictions are worth: meters that count images, scores, and what scores are compared with."""

from fgmoe_dist.metrics.meter import Scores

__all__ = ["Scores"]
