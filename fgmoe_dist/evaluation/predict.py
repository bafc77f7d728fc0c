"""Predicting on any photograph: fit it to the network's input, predict, bring every prediction back to its pixels."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from fgmoe_dist.data.augment import normalise
from fgmoe_dist.data.images import fit
from fgmoe_dist.model import Model


def predict_image(
    model: Model, image_HWC: np.ndarray, size_hw: tuple[int, int], class_tasks: Collection[str]
) -> dict[str, np.ndarray]:
    """Predictions of docs/contracts.md at the photograph's own resolution.

    Args:
        model: in evaluation mode.
        image_HWC: uint8 RGB of any size.
        size_hw: the size the network was trained at.
        class_tasks: tasks whose predictions are class ids, which must not be interpolated.
    """
    fitted_hwC, how = fit(image_HWC, size_hw)
    input_3HW = normalise(fitted_hwC, model.encoder.mean, model.encoder.std, size_hw)
    device = next(model.parameters()).device
    predictions = model.predict(input_3HW[None].to(device))
    return {name: how.back(values[0], name in class_tasks) for name, values in predictions.items()}
