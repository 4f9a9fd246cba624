#!/usr/bin/env python3
"""Tell in a sentence what is wrong with a dashboard file.

usage: own_dashboards.py ROLE_DASHBOARDS FILE

Exit status 1 and one line on stderr if Grafana could not show FILE beside those of the directory ROLE_DASHBOARDS.
"""

import json
import sys
from pathlib import Path


def main(role: Path, path: Path) -> str:
    try:
        board = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return f"cannot be read on the controller: {error.strerror}; give the path of an exported dashboard"
    except ValueError as error:
        return f"is no JSON ({error}); export the dashboard again"
    if not isinstance(board, dict) or not isinstance(board.get("title"), str) or "panels" not in board:
        return "is no dashboard: it has no title or no panels; export the dashboard again"
    if not board.get("uid"):
        return "has no uid; give it one, so that its address stays the same"
    if board["uid"] in {json.loads(each.read_text(encoding="utf-8"))["uid"] for each in role.glob("*.json")}:
        return f"has the uid {board['uid']}, which is one of the role's own; give it another"
    return ""


if __name__ == "__main__":
    directory, file = map(Path, sys.argv[1:])
    problem = main(directory, file)
    sys.exit(f"grafana_dashboards: {file} {problem}." if problem else 0)
