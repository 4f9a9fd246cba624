from random import Random

import pytest

from model_server.commands.drawings import FRUITS, draw_fruit


def test_the_fruits_are_the_classes_in_order() -> None:
    assert list(FRUITS) == ["apple", "grapes", "lemon"]


@pytest.mark.parametrize("name", list(FRUITS))
@pytest.mark.parametrize("size", [(192, 192), (64, 32), (301, 480)])
def test_a_state_gives_one_picture(name: str, size: "tuple[int, int]") -> None:
    first, again, other = (draw_fruit(name, Random(seed), *size) for seed in (1, 1, 2))
    assert (first.mode, first.size) == ("RGB", size)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_an_unknown_fruit_is_refused() -> None:
    with pytest.raises(KeyError, match="durian"):
        draw_fruit("durian", Random(0))
