from pathlib import Path

from model_server.commands.images import find_images


def test_images_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/c/1.jpg", "a.tiff", "b/notes.txt", "odd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [tmp_path / name for name in ("a.tiff", "b/2.PNG", "b/c/1.jpg", "odd")]
    assert find_images([tmp_path / "odd", tmp_path]) == expected
    assert find_images([tmp_path, tmp_path / "b" / ".." / "odd", tmp_path / "b"]) == expected
