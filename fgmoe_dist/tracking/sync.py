"""Brings stores up to date with run folders whose own process could not: it was killed, or had no network."""

from __future__ import annotations

from dataclasses import dataclass

from fgmoe_dist.errors import UserError
from fgmoe_dist.tracking.recorder import is_alive
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.sinks import Sink, create_sinks


@dataclass(frozen=True)
class Synced:
    """What became of one run in one store."""

    run: str
    store: str
    status: str
    sent: int  # figures and files
    note: str = ""


def sync(folder: RunFolder, uri: str = "", experiment: str = "", ended: bool = False) -> list[Synced]:
    """Sends what the stores of this run lack; called again, nothing.

    `uri` and `experiment` stand in the place of the run's own where they are given. A run that says RUNNING while its
    process is known to be dead becomes KILLED, in its folder too; where that cannot be known, only with `ended`.
    UserError where there is nowhere to send it to, or a store cannot be reached.
    """
    settings = folder.settings()
    own = settings.get("tracking", {})
    given = {key: value for key, value in (("uri", uri), ("experiment", experiment)) if value}
    sinks = create_sinks(folder, {**settings, "tracking": {**own, **given}})
    if not sinks:
        raise UserError(f"{folder.path}: was trained with tracking.uri=none; name a store with --uri")
    may_live, note = _settle(folder, ended)
    sends_itself = {sink.name for sink in create_sinks(folder, settings)} if may_live else set()
    return [_sync(folder, sink, note, sink.name in sends_itself) for sink in sinks]


def _settle(folder: RunFolder, ended: bool) -> tuple[bool, str]:
    """Whether the run's own process may still be there, and what is to be said of it; notes the end of a dead one."""
    about = folder.about()
    process = about.get("process", {})
    if about.get("status", "RUNNING") != "RUNNING":
        return False, ""
    alive = is_alive(process)
    if alive and ended:
        raise UserError(f"{folder.path}: its process {process['pid']} lives, so that --ended is wrong; leave it out")
    if ended or alive is False:
        lines, _ = folder.metrics_after(0)
        folder.update_about(status="KILLED", ended=lines[-1]["time"] if lines else about.get("started"))
        return False, "had been killed"
    if alive:
        return True, f"still runs, process {process['pid']}"
    where = f" on {process['host']}, which cannot be seen from here" if process else ""
    return bool(process), f"says that it runs{where}; if it does not, add --ended"


def _sync(folder: RunFolder, sink: Sink, note: str, sends_itself: bool) -> Synced:
    sent = 0
    if sends_itself:
        note += "; until then it sends by itself"
    else:
        try:
            sent = sink.catch_up()
        except UserError:
            raise
        except Exception as error:  # of a store MLflow passes on what its driver or the network raise
            raise UserError(f"{folder.path}: {sink.name}: {' '.join(str(error).split())[:200]}") from None
    status = folder.about().get("status", "unknown")
    return Synced(str(folder.path), sink.where_to_look(), status, sent, note)
