"""One image through the matcher of the public port pyEdgeEval, under the interpreter of `fgmoe bench boundary --port`.

That interpreter has numpy and pyEdgeEval, not this package: nothing of it is imported here. stdin: an .npz of
`maps_THW` and `truth_HW` (bool, thinned) and `max_dist`; stdout: one line of JSON.
"""

from __future__ import annotations

import io
import json
import platform
import sys
import time
from importlib.metadata import version

import numpy as np


def main() -> None:
    from pyEdgeEval import correspond_pixels

    arrays = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    maps_THW, truth_HW, max_dist = arrays["maps_THW"], arrays["truth_HW"], float(arrays["max_dist"])
    matched = []
    start = time.process_time()
    for map_HW in maps_THW:
        # The port's own evaluation skips an image without truth; the matcher is not made for it.
        pair_HW = correspond_pixels(map_HW, truth_HW, max_dist, 100.0)[0] if truth_HW.any() else np.zeros(1)
        matched.append(int((pair_HW > 0).sum()))
    seconds = time.process_time() - start
    versions = {"pyEdgeEval": version("pyEdgeEval"), "numpy": np.__version__, "python": platform.python_version()}
    print(json.dumps({"matched": matched, "seconds": seconds, "versions": versions}, allow_nan=False))


if __name__ == "__main__":
    main()
