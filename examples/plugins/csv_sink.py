"""A sink: the figures of a run as a table, `metrics.csv`, for who likes spreadsheets."""

import csv
import io

from fgmoe_dist.files import write_atomically
from fgmoe_dist.tracking.sinks import SINKS


class CSVSink:
    def __init__(self, folder):
        self.folder, self.table, self.sent = folder, folder.path / "metrics.csv", 0
        self.name = f"table {self.table}"

    def catch_up(self):
        """Called whenever the run folder has something new; how many lines that was."""
        lines = self.folder.metrics()
        written = io.StringIO()
        table = csv.DictWriter(written, list(dict.fromkeys(key for line in lines for key in line)))
        table.writeheader()
        table.writerows(lines)
        write_atomically(self.table, written.getvalue())
        new, self.sent = len(lines) - self.sent, len(lines)
        return new

    def where_to_look(self):
        return str(self.table)


SINKS["csv"] = lambda folder, settings: CSVSink(folder)
