from pathlib import Path

import pytest

from model_server.commands import CommandError
from model_server.commands.images import find_images


def test_images_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/c/1.jpg", "a.tiff", "b/notes.txt", "odd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [tmp_path / name for name in ("a.tiff", "b/2.PNG", "b/c/1.jpg", "odd")]
    assert find_images([tmp_path / "odd", tmp_path]) == expected
    assert find_images([tmp_path, tmp_path / "b" / ".." / "odd", tmp_path / "b"]) == expected


def test_a_table_stands_for_its_images_with_a_label(tmp_path: Path) -> None:
    for name in ("outlying/1.jpg", "outlying/2.jpg", "contact-sheet.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    table = tmp_path / "labels.csv"
    table.write_text("id,label,file\nx,apple,outlying/1.jpg\nx,,outlying/2.jpg\n")

    assert find_images([table]) == [tmp_path / "outlying" / "1.jpg"]
    assert find_images([tmp_path]) == [tmp_path / "outlying" / name for name in ("1.jpg", "2.jpg")]
    table.write_text("id,label,file\nx,,outlying/2.jpg\n")
    with pytest.raises(CommandError, match=r"labels.csv has no row with a label; fill in the true class"):
        find_images([table])
