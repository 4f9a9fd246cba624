"""Write every dashboard's JSON into a directory: by default the one that the grafana role provisions."""

import argparse
import json
from pathlib import Path
from typing import Dict

from dashboards import compatibility, model_monitoring, prometheus

DASHBOARDS = (model_monitoring.dashboard, prometheus.dashboard)
OUTPUT = Path(__file__).parents[1] / "roles" / "grafana" / "files" / "dashboards"


def files() -> Dict[str, str]:
    """File name (the dashboard's uid) → content."""
    boards = [compatibility.as_json(build().build()) for build in DASHBOARDS]
    return {f"{board['uid']}.json": json.dumps(board, indent=2, ensure_ascii=False) + "\n" for board in boards}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dashboards", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=OUTPUT)
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (directory / name).write_text(content, encoding="utf-8")
