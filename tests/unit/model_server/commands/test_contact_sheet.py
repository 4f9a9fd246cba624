import io
from pathlib import Path
from typing import Any, Callable, List

import pytest
from PIL import Image

from model_server.commands import contact_sheet
from model_server.commands.contact_sheet import COLUMNS, GAP, LINE, LINES, SIDE, draw_sheet
from model_server.metrics.samples import SampleReason
from model_server.server.ring import Sample

ROW = SIDE + LINES * LINE + GAP
COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


@pytest.fixture
def sample(tmp_path: Path) -> Callable[..., Sample]:
    def sample(colour: Any, reason: SampleReason = SampleReason.OUTLYING, **answer: Any) -> Sample:
        path = tmp_path / f"{len(list(tmp_path.iterdir())):020}-00000000.png"
        buffer = io.BytesIO()
        Image.new("RGB", (300, 200), colour).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue() if colour else b"none")
        return Sample(reason, path, {"class": "apple", "confidence": 0.5, "outlying": ["brightness"], **answer})

    return sample


def colour_at(sheet: Image.Image, number: int, top: int = GAP) -> Any:
    row, column = divmod(number, COLUMNS)
    return sheet.getpixel((GAP + column * (SIDE + GAP) + SIDE // 2, top + LINE + GAP + row * ROW + SIDE // 2))


def test_the_newest_of_a_reason_come_first(sample: Callable[..., Sample]) -> None:
    sheet = draw_sheet([sample(colour) for colour in COLOURS])
    assert [colour_at(sheet, number) for number in range(4)] == [*COLOURS[::-1], (255, 255, 255)]
    assert sheet.width == GAP + COLUMNS * (SIDE + GAP)


def test_reasons_stand_below_each_other(sample: Callable[..., Sample]) -> None:
    many = [sample((9, 9, 9), SampleReason.UNCERTAIN) for _ in range(COLUMNS + 1)]
    sheet = draw_sheet([sample((0, 0, 9)), *many])
    second = GAP + LINE + GAP + 2 * ROW
    assert [colour_at(sheet, 0), colour_at(sheet, COLUMNS), colour_at(sheet, 0, second)] == [
        (9, 9, 9),
        (9, 9, 9),
        (0, 0, 9),
    ]


def test_only_the_newest_are_shown(sample: Callable[..., Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "NEWEST", 2)
    sheet = draw_sheet([sample(colour) for colour in COLOURS])
    assert [colour_at(sheet, number) for number in range(3)] == [COLOURS[2], COLOURS[1], (255, 255, 255)]


def test_what_is_no_image_has_a_grey_place(sample: Callable[..., Sample]) -> None:
    gone = sample((1, 1, 1))
    gone.image.unlink()
    rejected: List[Sample] = [
        Sample(SampleReason.REJECTED, path, {"rejected": "undecodable", "error": "none"})
        for path in (gone.image, sample(None).image)
    ]
    sheet = draw_sheet(rejected)
    assert [colour_at(sheet, number) for number in range(2)] == [contact_sheet.GREY] * 2


def test_a_photo_stands_upright(sample: Callable[..., Sample]) -> None:
    sheet = draw_sheet([sample((9, 9, 9), orientation=6)])
    left = GAP + SIDE // 2
    top = GAP + LINE + GAP
    assert sheet.getpixel((left, top + 2)) == (9, 9, 9)
    assert sheet.getpixel((GAP + 2, top + SIDE // 2)) == (255, 255, 255)


def test_other_letters_than_the_fonts_are_no_error(sample: Callable[..., Sample]) -> None:
    assert draw_sheet([sample((9, 9, 9), **{"class": "яблоко" * 20, "confidence": None})]).width
