"""A data set whose files take some code to read: the left half is the photograph, the right half its albedo."""

from fgmoe_dist.data.layouts import LAYOUTS, Layout
from fgmoe_dist.data.layouts.base import read_picture


class Strips(Layout):
    dataset, folder, id_lists, needs = "strips", "Strips", "lists", ("lists", "pairs")
    tasks, classes, boundary_max_dist = ("albedo",), {}, 0.01
    definitions = {"albedo": {"kind": "vectors", "channels": 3, "unit": False, "range": [0, 1], "metric": "rmse"}}

    def image_path(self, id_):
        return self.root / "pairs" / f"{id_}.png"

    def image(self, id_):
        return self._halves(id_)[0]

    def read_labels(self, id_):
        return {"albedo": self._halves(id_)[1]}

    def _halves(self, id_):
        strip_HWC = read_picture(self.image_path(id_), "RGB")
        middle = strip_HWC.shape[1] // 2
        return strip_HWC[:, :middle], strip_HWC[:, middle:]


LAYOUTS["strips"] = Strips
