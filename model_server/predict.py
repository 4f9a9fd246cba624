"""The routes /predict and /probe: from a request to the name of a class."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from heapq import nlargest
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Protocol, Sequence, Union

from fastapi import HTTPException, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from model_server.api_keys import ApiKeys
from model_server.decoding import load_upload, open_upload
from model_server.feedback import PredictionIds
from model_server.metrics.predictions import ModelMetrics, Reason, RequestTimings
from model_server.model.accuracy import Accuracy, confidence_bin
from model_server.model.bundle import Manifest
from model_server.model.preprocessing import LARGE, decoding_of
from model_server.model.reference import Observation, Reference
from model_server.model_routes import ModelName, name_of
from model_server.samples import Answered, Samples
from model_server.server.batches import Batches
from model_server.server.http1 import OVERLOADED, RETRY
from model_server.server.ring import Ring
from model_server.server.shadow import Copies
from model_server.settings import Settings
from model_server.upload import CLIENT_CLOSED_REQUEST, FIELD, Problem, RejectedInputError, read_upload

if TYPE_CHECKING:  # the import of torch takes seconds
    from torch import Tensor

    from model_server.metrics.predictions import ModelAnswer


class ImageClassifier(Protocol):
    """What the app asks of a model."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def reference(self) -> Optional[Reference]: ...

    @property
    def accuracy(self) -> Optional[Accuracy]: ...

    @property
    def ready(self) -> bool: ...

    def preprocess(self, image: Image.Image) -> "Tensor": ...

    @property
    def batch_size(self) -> int: ...

    def classify_batch(self, images: "Sequence[Tensor]") -> "Sequence[ModelAnswer]": ...


class ClassConfidence(BaseModel):
    """A class and the softmax of it, 0..1; JSON names it `class`."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(alias="class")
    confidence: Optional[float]


class Prediction(BaseModel):
    """The answer to an image; `filename` is null when it came as the bare body.

    `predictions` is there with `?top=K`: the K likeliest classes, the likely one first. The other fields are there with
    `?details`: the id for /feedback, null where the server takes none, the softmax of the likely class, the model, and
    the milliseconds of each stage.
    """

    filename: Optional[str]
    content_type: str
    likely_class: str
    predictions: Optional[List[ClassConfidence]] = None
    id: Optional[str] = None
    confidence: Optional[float] = None
    model: Optional[ModelName] = None
    timings_ms: Optional[Dict[str, float]] = None


LONGEST_NUMBER = 9  # digits of `top`
DETAILS = frozenset({"", "true"})  # values of the query's field `details` that ask for them
IMAGE_SCHEMA = {"type": "string", "format": "binary"}
PREDICT_REQUEST: Dict[str, Any] = {
    "parameters": [
        {
            "name": "details",
            "in": "query",
            "required": False,
            "allowEmptyValue": True,
            "schema": {"type": "string", "enum": ["", "true"]},
            "description": "Answer with the id for /feedback, the confidence, the model and the timings, too.",
        },
        {
            "name": "top",
            "in": "query",
            "required": False,
            "schema": {"type": "integer", "minimum": 1},
            "description": "Answer with so many of the likeliest classes and their confidences, too.",
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": [FIELD], "properties": {FIELD: IMAGE_SCHEMA}}
            },
            "image/*": {"schema": IMAGE_SCHEMA},
        },
    },
}
PREDICT_ERRORS: Dict[Any, Dict[str, Any]] = {
    400: {"description": "Not an image, a malformed form, or a `top` that is no number from 1 on", "model": Problem},
    401: {"description": "The server asks for a key, and the request has none that it knows", "model": Problem},
    408: {"description": "The body arrived too slowly", "model": Problem},
    413: {"description": "The body or the image is too large", "model": Problem},
    415: {"description": "Neither a multipart form nor an image of an accepted format", "model": Problem},
    422: {"description": "The form lacks the file", "model": Problem},
    503: {"description": "Too many predictions wait; Retry-After says when to try again", "model": Problem},
}


class Predictor:
    """Answers /predict and /probe.

    The model runs in the event loop on purpose: a worker has one core, and if the model hangs, the worker misses
    gunicorn's heartbeat and is replaced.
    """

    def __init__(
        self, settings: Settings, model: ImageClassifier, metrics: ModelMetrics, keys: ApiKeys, ids: PredictionIds
    ) -> None:
        self._settings, self._model, self._metrics, self._keys, self._ids = settings, model, metrics, keys, ids
        self.copies = Copies(settings.runtime_dir)
        self._samples: Optional[Samples] = None
        if settings.samples_directory is not None and metrics.samples is not None:
            ring = Ring(settings.samples_directory, settings.samples_max_bytes)
            below = settings.samples_below_confidence
            self._samples = Samples(ring, below, model.manifest, model.reference, metrics.samples)
        self._named = name_of(model.manifest)
        self._headers = {f"X-Model-{field.capitalize()}": value for field, value in self._named.items()}
        self._decoding = decoding_of(model.manifest, settings.decoding)
        self._batches = Batches(model.classify_batch, model.batch_size, metrics.queue)
        self._large_images = ThreadPoolExecutor(1)  # one at a time: each takes much memory

    def is_overloaded(self) -> bool:
        """Return whether a new prediction would wait too long."""
        return self._batches.wait_estimate > self._settings.max_queue_seconds

    async def predict(self, request: Request) -> JSONResponse:
        """Name the class of an image, sent as form field `file` or as the body itself."""
        timings = RequestTimings()
        try:
            return await self._answer(request, timings)
        except RejectedInputError as error:
            self._metrics.reject(error.reason)
            request.scope["problem"] = error.detail
            raise
        finally:
            self._metrics.record(timings)

    async def probe(self, request: Request) -> JSONResponse:
        """Answer as /predict does, to one who watches the server: nothing is counted among inputs and predictions."""
        try:
            return await self._answer(request, RequestTimings(), is_probe=True)
        except RejectedInputError as error:
            request.scope["problem"] = error.detail
            raise

    def authorize(self, request: Request) -> None:
        """Refuse a request without one of the keys, where the server has keys.

        Raises:
            RejectedInputError: 401.
        """
        if not self._keys.names or request.scope.get("self_check"):
            return
        caller = self._keys.judge(request.headers)
        self._metrics.authorize(caller.name, caller.accepted)
        if not caller.accepted:
            sentence = "A key is needed: send X-API-Key: NAME.SECRET, or Authorization: Bearer NAME.SECRET."
            raise RejectedInputError(401, Reason.UNAUTHORIZED, sentence, {"WWW-Authenticate": "Bearer"})

    async def _answer(self, request: Request, timings: RequestTimings, is_probe: bool = False) -> JSONResponse:
        self.authorize(request)  # before the body is read
        top = _wanted_classes(request)
        upload = await read_upload(request, self._settings.max_body_bytes)
        timings.lap("read")
        if self.is_overloaded():  # by requests that have come since the head
            status, sentence = OVERLOADED
            raise RejectedInputError(status, Reason.OVERLOADED, sentence, RETRY)
        if self._settings.fault_injection and upload.content_type.startswith("fake_server_error/"):
            raise HTTPException(500, "Simulated server error.")
        is_gone: Callable[[], bool] = request.scope.get("is_gone", bool)  # set by the server
        content_type = upload.content_type

        def prepare() -> "Union[Tensor, asyncio.Future[Tensor]]":
            nonlocal content_type
            timings.lap("queue")
            _refuse_if(is_gone())
            image = open_upload(upload, timings, self._settings.max_image_pixels)
            content_type = content_type or Image.MIME[str(image.format)]
            if image.width * image.height > LARGE:  # the event loop goes on meanwhile
                return asyncio.get_running_loop().run_in_executor(self._large_images, finish, image)
            return finish(image)

        def finish(image: Image.Image) -> "Tensor":
            image = load_upload(image, upload, timings, self._decoding)
            timings.lap("decode")
            pixels = self._model.preprocess(image)
            timings.lap("preprocess")
            return pixels

        samples = None if is_probe or request.scope.get("self_check") else self._samples
        try:
            pixels, answered = await self._batches.predict(prepare, timings.lap)
        except RejectedInputError as error:
            if samples is not None:
                samples.reject(upload.data, request, error)
            raise
        likely_class, confidence, logits, _ = answered
        _refuse_if(is_gone())
        observation: Observation = ()
        if not is_probe:
            observation = self._metrics.predict(timings, pixels, answered)
            self.copies.offer(upload.data, likely_class)
        answer: Dict[str, Any] = {
            "filename": upload.filename,
            "content_type": content_type,
            "likely_class": likely_class,
        }
        headers = self._headers
        prediction_id = None
        if self._ids and not is_probe:
            prediction_id = self._ids.issue(self._named["version"], likely_class, confidence_bin(confidence))
            headers = {**headers, "X-Prediction-Id": prediction_id}
        if samples is not None:
            samples.judge(Answered(upload.data, request, prediction_id, likely_class, confidence), observation)
        if top:
            answer["predictions"] = _likeliest(top, self._model.manifest.classes, logits)
        if request.scope["query_string"] and request.query_params.get("details", "false") in DETAILS:
            answer["id"], answer["model"] = prediction_id, self._named
            answer["confidence"] = _or_null(confidence)
            answer["timings_ms"] = {stage: round(seconds * 1000, 3) for stage, seconds in timings.stages.items()}
        return JSONResponse(answer, headers=headers)


def _wanted_classes(request: Request) -> int:
    """Return the query's `top`: how many of the likeliest classes the client asks for; 0 without one."""
    top = request.query_params.get("top") if request.scope["query_string"] else None
    if top is None:
        return 0
    if not top.isascii() or not top.isdigit() or len(top) > LONGEST_NUMBER or int(top) < 1:
        sentence = f"top is {top[:LONGEST_NUMBER]!r}; set it to a number of classes from 1 on, or leave it out."
        request.scope["problem"] = sentence
        raise HTTPException(400, sentence)
    return int(top)


def _likeliest(count: int, classes: Sequence[str], logits: "Tensor") -> List[Dict[str, Union[str, float, None]]]:
    likeliest = nlargest(count, zip(classes, logits.softmax(0).tolist()), key=itemgetter(1))
    return [{"class": name, "confidence": _or_null(confidence)} for name, confidence in likeliest]


def _or_null(confidence: float) -> Optional[float]:
    return None if math.isnan(confidence) else confidence  # JSON has no NaN


def _refuse_if(is_gone: bool) -> None:
    """Refuse to go on with a request whose client has gone."""
    if is_gone:
        raise RejectedInputError(CLIENT_CLOSED_REQUEST, Reason.ABANDONED, "The client has gone.")
