"""A thread that keeps a sink abreast of the run folder, without ever holding up or ending the training."""

from __future__ import annotations

import logging
import threading

from fgmoe_dist.errors import UserError
from fgmoe_dist.tracking.run_folder import RunFolder
from fgmoe_dist.tracking.sinks import Sink

log = logging.getLogger(__name__)

RETRY_SECONDS = 15.0
START_SECONDS = 30.0  # that a run waits for its sink's first answer, which may be that its settings can never work


class Tail:
    """A sink that fails is warned about once, and tried again until the run ends."""

    def __init__(self, sink: Sink, folder: RunFolder):
        self.sink, self.folder = sink, folder
        self._wake, self._ending, self._answered = threading.Event(), threading.Event(), threading.Event()
        self._refusal: UserError | None = None
        self._warned = False
        self._up_to_date = False
        self._thread = threading.Thread(target=self._work, name="tail", daemon=True)

    def start(self) -> None:
        """Raises UserError where the sink's first answer is one."""
        self.wake()
        self._thread.start()
        if not self._answered.wait(START_SECONDS):
            self._answered.set()  # nobody waits any more: from now on a refusal is warned about
        if self._refusal is not None:
            raise self._refusal

    def wake(self) -> None:
        """Says that the folder has something new; takes no time."""
        self._wake.set()

    def end(self, seconds: float) -> None:
        """Sends what is left, for so long at most, and warns if that was not enough."""
        self._ending.set()
        self.wake()
        self._thread.join(seconds)
        if not self._up_to_date:
            log.warning(
                "%s is behind; %s has it all, and `fgmoe sync` sends the rest later", self.sink.name, self.folder.path
            )

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            ending = self._ending.is_set()  # read before sending: nothing is written after it is set
            sent = self._catch_up()
            self._answered.set()
            if self._refusal is not None:
                return
            if ending:
                self._up_to_date = sent or self._catch_up()
                return
            if not sent:
                self._ending.wait(RETRY_SECONDS)
                self.wake()

    def _catch_up(self) -> bool:
        try:
            self.sink.catch_up()
            return True
        except Exception as error:  # any trouble of the store is survived
            if isinstance(error, UserError) and not self._answered.is_set():
                self._refusal = error
            elif not self._warned:
                self._warned = True
                reason = " ".join(str(error).split())[:200]
                log.warning("%s: %s; training goes on, %s has it all", self.sink.name, reason, self.folder.path)
            return False
