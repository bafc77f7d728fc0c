"""Scores as a JSON file, `{task: {metric: value}}`: what `--json` writes and `--baseline` reads. NaN is null there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fgmoe_dist.errors import UserError
from fgmoe_dist.metrics import Scores


def read_scores(path: Path) -> Scores:
    """A file that `--json` wrote.

    Raises:
        UserError: unreadable, or not `{task: {metric: number}}`.
    """
    try:
        scores = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"scores {path} cannot be read ({error}); give a file that --json wrote") from error
    if not isinstance(scores, dict) or not all(_is_metrics(metrics) for metrics in scores.values()):
        raise UserError(f"scores {path} is not {{task: {{metric: number}}}}; give a file that --json wrote")
    return scores


def _is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(v is None or type(v) in (int, float) for v in value.values())
