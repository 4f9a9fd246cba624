"""Tables of labels: CSV files with a line that names the columns, as people fill them in."""

import csv
from pathlib import Path
from typing import Dict, Iterator, Sequence, Tuple

from model_server.commands import CommandError


def read_labels(path: Path, columns: Sequence[str]) -> Iterator[Tuple[int, Dict[str, str]]]:
    """Yield the number and the values of each row, from 1 on; the table may have more columns.

    Args:
        path: of the file, in UTF-8.
        columns: those that it must have.

    Raises:
        CommandError: it cannot be read, or lacks one of them.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise CommandError(
                    f"{path} has no column {missing[0]}; its first line must name {' and '.join(columns)}."
                )
            for number, row in enumerate(reader, start=1):
                yield number, {column: (row[column] or "").strip() for column in columns}
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CommandError(f"{path} is not CSV in UTF-8: {error}.") from error
