"""Parts of people: background, head, torso, ..."""

from fgmoe_dist.tasks.class_map import ClassTask


class HumanParts(ClassTask):
    name, title = "human_parts", "human parts"
