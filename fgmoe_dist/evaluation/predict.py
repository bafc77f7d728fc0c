"""Predicting on any photograph: fit it to the network's input, predict, bring every prediction back to its pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fgmoe_dist.data.augment import normalise
from fgmoe_dist.data.images import fit

if TYPE_CHECKING:
    from fgmoe_dist.model import Model


def predict_image(model: Model, image_HWC: np.ndarray, size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    """Predictions of docs/contracts.md at the photograph's own resolution.

    Args:
        model: in evaluation mode.
        image_HWC: uint8 RGB of any size.
        size_hw: the size the network was trained at.
    """
    fitted_hwC, how = fit(image_HWC, size_hw)
    input_3HW = normalise(fitted_hwC, model.encoder.mean, model.encoder.std, size_hw)
    device = next(model.parameters()).device
    predictions = model.predict(input_3HW[None].to(device))
    return {task.name: how.back(predictions[task.name][0], task.label) for task in model.tasks}
