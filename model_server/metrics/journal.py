"""What is logged of requests that fail: some lines a minute, and the number of the others."""

import logging
import time

SECONDS = 60.0
LINES = 10  # in these seconds, for each worker and kind

log = logging.getLogger("gunicorn.error")


class LimitedLog:
    """Logs at most `LINES` lines in `SECONDS`: a flood fills no disk, and hides nothing else."""

    def __init__(self, what: str, lines: int = LINES) -> None:
        """Log `what`, in the plural."""
        self._what, self._lines = what, lines
        self._ends = 0.0
        self._logged = 0
        self._silent = 0

    def add(self, line: str) -> None:
        self.flush()
        if self._logged < self._lines:
            self._logged += 1
            # Clients choose parts of it: the name of a file may have line breaks.
            log.warning("%s", "".join(character if character.isprintable() else "?" for character in line))
        else:
            self._silent += 1

    def flush(self) -> None:
        """Log how many lines were left out, once their time is over."""
        now = time.monotonic()
        if now < self._ends:
            return
        if self._silent:
            log.warning("%d more %s in the last %d seconds.", self._silent, self._what, SECONDS)
        self._ends, self._logged, self._silent = now + SECONDS, 0, 0
