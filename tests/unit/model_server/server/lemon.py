"""An app around a model that needs no torch, for gunicorn in the tests."""

import gc
import os
import time
from typing import Any, List, Sequence, Tuple

from fastapi import FastAPI
from PIL import Image

from model_server import samples
from model_server.app import create_app
from model_server.model.bundle import Manifest
from model_server.server import connections
from model_server.settings import read_settings

if "LEMON_HURRIES" in os.environ:  # deadlines that a test can wait for
    connections.HEAD_SECONDS = connections.SLOW_BODY_SECONDS = 1.0
    connections.BODY_SECONDS = 3.0

if "LEMON_KEEPS_ALL" in os.environ:
    samples.INTERVAL = 0.0


class Lemon:
    manifest = Manifest(
        name="lemon",
        version="1.0",
        architecture="none",
        classes=tuple(os.environ.get("LEMON_CLASSES", "apple grapes lemon").split()),
        input_size=16,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        weights_sha256="0" * 64,
    )
    reference = None
    accuracy = None
    ready = True

    def preprocess(self, image: Image.Image) -> Any:
        return image

    batch_size = 1

    def classify_batch(self, images: Sequence[Any]) -> List[Tuple[str, float, Any, Any]]:
        if "LEMON_FAILS" in os.environ:
            raise RuntimeError("a lemon")
        time.sleep(float(os.environ.get("LEMON_SLEEPS", "0")))
        return [("lemon", 0.9, None, None)]


def app() -> FastAPI:
    made = create_app(read_settings(), Lemon())
    if "LEMON_OVERLOADED" in os.environ:
        made.state.overload = made.state.overload._replace(is_overloaded=lambda: True)

    @made.get("/frozen")
    async def frozen() -> int:
        """Return how many objects Python's collector of garbage does not look at."""
        return gc.get_freeze_count()

    return made
