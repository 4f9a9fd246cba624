"""An app around a model that needs no torch, for gunicorn in the tests."""

from pathlib import Path

from fastapi import FastAPI
from PIL import Image

from model_server.app import create_app
from model_server.settings import Settings


class Lemon:
    classes = ("apple", "grapes", "lemon")
    ready = True

    def predict(self, image: Image.Image) -> str:
        return "lemon"


def app() -> FastAPI:
    return create_app(Settings(bundle=Path("none")), Lemon())
