"""For Locust, beside load_test/locustfile.py: drops the statistics of the time before all users have settled."""

from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import events

from benchmarks.users import SETTLE

hooks: Any = events  # which have no types


def _forget_the_arrival(environment: Any, **_: Any) -> None:
    hooks.spawning_complete.add_listener(lambda **_: gevent.spawn_later(SETTLE, environment.runner.stats.reset_all))


hooks.init.add_listener(_forget_the_arrival)
