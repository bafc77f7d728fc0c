"""Where else a run is told, beside its folder. A sink reads the run folder and sends what its store lacks.

A new sink is a file here and a line in `SINKS`; `tracking.sinks` names those that a run uses.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Protocol

from fgmoe_dist.errors import UserError
from fgmoe_dist.plugins import HINT
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.sinks.mlflow import mlflow_sink


class Sink(Protocol):
    """Constructing one touches nothing. Its calls come from one thread."""

    name: str  # for messages: what it is and where

    def catch_up(self) -> int:
        """Sends all that the run folder has and the store has not; how many figures and files that was.

        After a failure the next call makes it good. Raises UserError for settings that can never work, and whatever
        else befalls it.
        """

    def where_to_look(self) -> str:
        """What a person opens to see the run."""


# Each makes its sink from a run folder and the run's settings, nested, as in `config.yaml`; None: not wanted there.
SINKS: dict[str, Callable[[RunFolder, Mapping[str, Any]], Sink | None]] = {"mlflow": mlflow_sink}


def create_sinks(folder: RunFolder, settings: Mapping[str, Any]) -> list[Sink]:
    """The sinks that the settings ask for. UserError for names and places that cannot be."""
    names = settings.get("tracking", {}).get("sinks", ["mlflow"])
    if unknown := [name for name in names if name not in SINKS]:
        raise UserError(
            f"tracking.sinks={names}: there is no {', '.join(unknown)}; choose among {', '.join(SINKS)}{HINT}"
        )
    return [sink for name in names if (sink := SINKS[name](folder, settings)) is not None]
