"""Saliency: what stands out."""

from fgmoe_dist.tasks.binary_map import BinaryTask


class Saliency(BinaryTask):
    name, title = "sal", "saliency"
