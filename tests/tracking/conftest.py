from __future__ import annotations

import pytest

from fgmoe_dist.tracking.run_folder import RunFolder
from tests.tracking.stores import start


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A folder whose sqlite file has its tables already: making them takes seconds."""
    folder = tmp_path_factory.mktemp("runs")
    with start(RunFolder(folder / "first")):
        pass
    return folder
