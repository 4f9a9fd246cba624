#!/usr/bin/env python3
"""Tell in a sentence each what is wrong with dashboard files.

usage: own_dashboards.py ROLE_DASHBOARDS FILE...

Exit status 1 and a line on stderr for each FILE that Grafana could not show beside those of the directory
ROLE_DASHBOARDS and the FILEs before it: two of one uid or title keep it from provisioning any.
"""

import json
import sys
from pathlib import Path
from typing import Dict, List


def problem_of(path: Path, taken: Dict[str, Path]) -> str:
    """Return what is wrong with a file, and enter its uid and title into those that are taken."""
    try:
        board = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return f"cannot be read on the controller: {error.strerror}; give the path of an exported dashboard"
    except ValueError as error:
        return f"is no JSON ({error}); export the dashboard again"
    if not isinstance(board, dict) or not isinstance(board.get("title"), str) or "panels" not in board:
        return "is no dashboard: it has no title or no panels; export the dashboard again"
    problem = ""
    if board.get("__inputs"):
        problem = "was exported for sharing and asks for its datasource; export it without that option"
    if not isinstance(board.get("uid"), str) or not board["uid"]:
        problem = "has no uid; give it one, so that its address stays the same"
    for field in ("title", "uid"):
        other = taken.setdefault(f"{field} {board.get(field)}", path)
        if other != path and not problem:
            problem = f"has the {field} {board[field]}, as {other.name} has; give it another"
    return problem


def main(role: Path, files: List[Path]) -> str:
    taken: Dict[str, Path] = {}
    for own in sorted(role.glob("*.json")):
        problem_of(own, taken)
    problems = [(file, problem_of(file, taken)) for file in files]
    return "\n".join(f"grafana_dashboards: {file} {problem}." for file, problem in problems if problem)


if __name__ == "__main__":
    directory, *others = map(Path, sys.argv[1:])
    sys.exit(main(directory, others) or None)
