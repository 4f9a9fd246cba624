"""Has Locust write down every request: `locust --locustfile locustfile.py,request_log.py`.

Each line of requests.csv, in its working directory, has the moment of the request in seconds since the epoch, the
milliseconds until it was over, and what went wrong, if something did. Runs on Python 3.8, as load_test/ does.
"""

import csv
from pathlib import Path
from typing import Any, Optional

from locust import events

_file = Path("requests.csv").open("w", encoding="utf-8", buffering=1, newline="")  # noqa: SIM115 - stays open
_lines = csv.writer(_file)
hooks: Any = events  # which have no types


def _write(start_time: float, response_time: float, exception: Optional[Exception], **_: Any) -> None:
    _lines.writerow([start_time, response_time, " ".join(str(exception or "").split())])


hooks.request.add_listener(_write)
