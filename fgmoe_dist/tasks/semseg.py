"""Semantic segmentation."""

from fgmoe_dist.tasks.class_map import ClassTask


class Semseg(ClassTask):
    name, title = "semseg", "semantic classes"
