"""Scores as a table for a person."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fgmoe_dist.metrics import Scores
from fgmoe_dist.tasks import Task


def print_scores(tasks: Sequence[Task], scores: Scores, title: str, constants: Scores | None = None) -> None:
    """Every metric of every task, the headline first, beside the best constant prediction's where known."""
    table = Table()
    table.add_column("task")
    table.add_column("metric")
    table.add_column("better")
    table.add_column("model", justify="right")
    if constants:
        table.add_column("best constant", justify="right")
    for task in tasks:
        values = scores[task.name]
        for name in sorted(values, key=lambda name: name != task.headline):
            headline = name == task.headline
            unit = task.unit_of(name)
            row = [task.name if headline else "", f"{name}, {unit}" if unit else name]
            row += ["lower" if task.lower_is_better else "higher"] if headline else [""]
            row += [f"{values[name]:.4g}"]
            if constants:
                constant = constants.get(task.name, {}).get(name)
                row += ["" if constant is None else f"{constant:.4g}"]
            table.add_row(*row, style="bold" if headline else None)
    # rich would take 80 columns where there is no terminal; a log has more.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)
    console.print(title, style="bold", soft_wrap=True, highlight=False, markup=False)  # a table would wrap it
    console.print(table)
