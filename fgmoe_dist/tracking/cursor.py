"""How much of a run folder a store has: `mlflow_cursor.json` in the folder, an entry per store.

It moves on only after the store has taken what was sent. It may be lost: the store itself is then asked what it has.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fgmoe_dist.files import write_json
from fgmoe_dist.tracking.run_folder import RunFolder


@dataclass
class Cursor:
    run_id: str = ""
    status: str = ""  # "" while something is being sent; else the run's status, which is sent last
    steps: dict[str, int] = field(default_factory=dict)  # of each metric: the last step that the store has
    pictures: dict[str, int] = field(default_factory=dict)  # of each series of pictures, likewise
    files: dict[str, list[int]] = field(default_factory=dict)  # sent as they are: size and time of the last change

    @classmethod
    def load(cls, folder: RunFolder, store: str) -> Cursor:
        """What is known of `store`, by its URI; an empty one where nothing is."""
        known = _entries(folder).get(store, {})
        return cls(**{name: known[name] for name in cls.__dataclass_fields__ if name in known})

    def save(self, folder: RunFolder, store: str) -> None:
        """Other stores' entries stay as they are."""
        write_json(folder.cursor_file, {**_entries(folder), store: asdict(self)})

    @property
    def is_sure(self) -> bool:
        """Whether all that was sent is noted here: the process that sent it came to its end."""
        return bool(self.status)


def _entries(folder: RunFolder) -> dict[str, Any]:
    try:
        entries = json.loads(folder.cursor_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = entries if isinstance(entries, dict) else {}
    return {store: entry for store, entry in known.items() if isinstance(entry, dict)}
