"""The HTTP interface: the routes, their answers, and how the rooms are put together."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Coroutine, Dict, Optional, Protocol, Sequence, Tuple

from fastapi import FastAPI, HTTPException, Request
from fastapi.routing import APIRoute
from PIL import Image
from prometheus_client import generate_latest
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from model_server.metrics.exposition import CONTENT_TYPE, Page
from model_server.metrics.predictions import ModelMetrics, Reason, RequestTimings
from model_server.metrics.requests import RequestMetrics
from model_server.metrics.slots import check_metrics_dir
from model_server.model.bundle import BundleError, Manifest, read_bundle
from model_server.model.preprocessing import ImageTooLargeError, UndecodableImageError, load, open_image
from model_server.model.reference import Reference
from model_server.server.batches import Batches
from model_server.settings import Settings, SettingsError, read_settings
from model_server.upload import FIELD, RejectedInputError, Upload, read_upload

if TYPE_CHECKING:  # the import of torch takes seconds
    from torch import Tensor


class ImageClassifier(Protocol):
    """What the app asks of a model."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def reference(self) -> Optional[Reference]: ...

    @property
    def ready(self) -> bool: ...

    def preprocess(self, image: Image.Image) -> "Tensor": ...

    @property
    def batch_size(self) -> int: ...

    def classify_batch(self, images: "Sequence[Tensor]") -> Sequence[Tuple[str, float]]: ...


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request alone: skips FastAPI's dependency injection, which costs 0.07 ms."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


class Prediction(BaseModel):
    """The answer to an image; `filename` is null when it came as the bare body."""

    filename: Optional[str]
    content_type: str
    likely_class: str


IMAGE_SCHEMA = {"type": "string", "format": "binary"}
PREDICT_REQUEST: Dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": [FIELD], "properties": {FIELD: IMAGE_SCHEMA}}
            },
            "image/*": {"schema": IMAGE_SCHEMA},
        },
    }
}
PREDICT_ERRORS: Dict[Any, Dict[str, Any]] = {
    400: {"description": "Not an image, or a malformed form"},
    413: {"description": "The body or the image is too large"},
    415: {"description": "Neither a multipart form nor an image"},
    422: {"description": "The form lacks the file"},
}


def create_app(settings: Settings, classifier: Optional[ImageClassifier] = None) -> FastAPI:
    """Build the application.

    Args:
        settings: of the server.
        classifier: the model; the one of `settings.bundle` is loaded when none is given.

    Raises:
        BundleError: the bundle cannot be used.
    """
    if classifier is None:
        bundle = read_bundle(settings.bundle)  # before torch, whose import takes seconds
        from model_server.model.classifier import Classifier  # noqa: PLC0415 - imports torch

        classifier = Classifier(bundle)
    model = classifier

    fast_for = model.manifest.input_size if settings.decoding == "fast" else None
    metrics = ModelMetrics(model.manifest, model.reference, settings.release)
    batches = Batches(model.classify_batch, model.batch_size)

    # The model runs in the event loop on purpose: a worker has one core, and if the model hangs, the worker misses
    # gunicorn's heartbeat and is replaced.
    async def predict(request: Request) -> JSONResponse:
        """Name the class of an image, sent as form field `file` or as the body itself."""
        timings = RequestTimings()
        try:
            return JSONResponse(await answer(request, timings))
        except RejectedInputError as error:
            metrics.reject(error.reason)
            raise
        finally:
            metrics.record(timings)

    async def answer(request: Request, timings: RequestTimings) -> Dict[str, Optional[str]]:
        upload = await read_upload(request, settings.max_body_bytes)
        timings.lap("read")
        if settings.fault_injection and upload.content_type.startswith("fake_server_error/"):
            raise HTTPException(500, "Simulated server error.")

        def prepare() -> "Tensor":
            timings.lap("queue")
            image = read_image(upload, timings, settings.max_image_pixels, fast_for)
            timings.lap("decode")
            pixels = model.preprocess(image)
            timings.lap("preprocess")
            return pixels

        pixels, (likely_class, confidence) = await batches.predict(prepare, timings.lap)
        metrics.predict(timings, pixels, likely_class, confidence)
        return {"filename": upload.filename, "content_type": upload.content_type, "likely_class": likely_class}

    predict_route = DirectRoute(
        "/predict",
        predict,
        methods=["POST"],
        response_model=Prediction,
        openapi_extra=PREDICT_REQUEST,
        responses=PREDICT_ERRORS,
    )
    app = FastAPI(
        title="Model server",
        description="Classifies images and counts what it does.",
        routes=[predict_route],  # routes are tried in order: the busiest one comes first
    )

    @app.get("/")
    async def root() -> Dict[str, str]:
        return {"status": "ok", "docs": "/docs"}

    @app.get("/healthz")
    async def healthz() -> Dict[str, str]:
        """Answer as long as the process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"description": "The model has not answered yet"}})
    async def readyz() -> Dict[str, str]:
        """Answer 200 once the model is loaded and has done a forward pass."""
        if not model.ready:
            raise HTTPException(503, "The model is not ready.")
        return {"status": "ready"}

    instrument(app, metrics, settings.metrics_dir)
    return app


def instrument(app: FastAPI, metrics: ModelMetrics, metrics_dir: Optional[Path]) -> None:
    """Serve the metrics at /metrics, and measure the requests to all routes that the app has by now.

    Args:
        app: the finished app.
        metrics: those of its model.
        metrics_dir: where all workers have their files; None: this process is the only one, and has none.
    """
    page = None if metrics_dir is None else Page(metrics_dir)
    if page is not None:
        page.render()  # parsed once here, before the fork, instead of in every worker

    async def serve(request: Request) -> Response:
        counted = generate_latest(metrics.registry) if page is None else page.render()
        # A new connection is accepted by a worker that is idle; over a keep-alive one, a scrape would wait for the
        # predictions of its worker.
        headers = {"Content-Type": CONTENT_TYPE, "Connection": "close"}
        return Response(counted + metrics.constants, headers=headers)

    app.add_route("/metrics", serve)
    paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    app.add_middleware(RequestMetrics, paths=paths, registry=metrics.registry)


def read_image(upload: Upload, timings: RequestTimings, max_pixels: int, fast_for: Optional[int]) -> Image.Image:
    """Decode an upload and record its size and its pixels: the original ones, also when `fast_for` reduces the scale.

    Raises:
        RejectedInputError: it is no image, or one that cannot be decoded or is too large.
    """
    name = "The body" if upload.filename is None else f"File '{upload.filename}'"
    if not upload.content_type.lower().startswith("image/"):
        raise RejectedInputError(400, Reason.NOT_AN_IMAGE, f"{name} is not an image.")
    if not upload.data:
        raise RejectedInputError(400, Reason.EMPTY, f"{name} is empty.")
    timings.size = len(upload.data)
    try:
        image = open_image(upload.data, max_pixels)
        pixels = image.width * image.height
        image = load(image, fast_for)
    except ImageTooLargeError as error:
        raise RejectedInputError(413, Reason.IMAGE_TOO_LARGE, f"{name} is too large: {error}.") from error
    except UndecodableImageError as error:
        problem = "damaged, or of an unknown format"
        raise RejectedInputError(
            400, Reason.UNDECODABLE, f"{name} cannot be decoded as an image: {problem}."
        ) from error
    timings.pixels = pixels
    return image


def app_from_environment() -> FastAPI:
    """Build the application for gunicorn; a wrong setting or bundle ends the process with one sentence."""
    try:
        settings = read_settings()
        check_metrics_dir(settings.metrics_dir)
        return create_app(settings)
    except (SettingsError, BundleError) as error:
        sys.exit(f"model server: {error}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        sys.exit("model server: PyTorch is not installed in this Python environment.")
