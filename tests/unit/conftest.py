import io
import os
import signal
from typing import Any, Callable, Iterator, Sequence

import pytest
from PIL import Image

Encode = Callable[..., bytes]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of the person who runs the tests out of them."""
    for variable in list(os.environ):
        if variable.upper().startswith(("MODEL_SERVER_", "PROMETHEUS_MULTIPROC_DIR")):
            monkeypatch.delenv(variable)


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> Iterator[None]:
    """A shell gives what it starts in the background an ignored SIGINT, which the tests' processes would inherit."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture
def encode() -> Encode:
    """Encode a picture of the given size and mode as a file in memory."""

    def encode(size: Sequence[int] = (200, 160), mode: str = "RGB", kind: str = "JPEG", **options: Any) -> bytes:
        gradient = Image.linear_gradient("L").resize((size[0], size[1]))
        picture = gradient.convert("I").point(lambda value: value * 257) if mode == "I;16" else gradient
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, kind, **options)
        return buffer.getvalue()

    return encode
