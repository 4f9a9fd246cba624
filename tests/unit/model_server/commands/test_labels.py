from pathlib import Path

import pytest

from model_server.commands import CommandError
from model_server.commands.labels import read_labels


def test_rows_have_the_columns_that_are_asked_for(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("label,other,file\n apple ,x,a.jpg\n,y,b.jpg\nlemon\n", encoding="utf-8-sig")
    assert list(read_labels(table, ("file", "label"))) == [
        (1, {"file": "a.jpg", "label": "apple"}),
        (2, {"file": "b.jpg", "label": ""}),
        (3, {"file": "", "label": "lemon"}),
    ]


def test_what_is_no_table_of_labels_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"none.csv cannot be read: No such file or directory\.$"):
        list(read_labels(tmp_path / "none.csv", ("id", "label")))
    (tmp_path / "other.csv").write_text("id,class\n")
    with pytest.raises(CommandError, match=r"has no column label; its first line must name id and label\.$"):
        list(read_labels(tmp_path / "other.csv", ("id", "label")))
    (tmp_path / "latin.csv").write_bytes(b"id,label\n1,p\xeache\n")
    with pytest.raises(CommandError, match=r"latin.csv is not CSV in UTF-8: "):
        list(read_labels(tmp_path / "latin.csv", ("id", "label")))
