"""The HTTP interface: the routes, their answers, and how the rooms are put together."""

import gzip
import sys
from pathlib import Path
from typing import Any, Callable, Coroutine, Dict, List, Optional

from fastapi import FastAPI, HTTPException, Request, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from fastapi_offline import FastAPIOffline
from prometheus_client import generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Mount, Route

from model_server.api_keys import ApiKeys
from model_server.feedback import FEEDBACK_ERRORS, FEEDBACK_REQUEST, Feedback, FeedbackAnswer, PredictionIds
from model_server.metrics.exposition import CONTENT_TYPE, Page
from model_server.metrics.feedback import FAMILIES as FEEDBACK_FAMILIES
from model_server.metrics.feedback import FeedbackMetrics
from model_server.metrics.journal import LimitedLog
from model_server.metrics.predictions import ModelMetrics, Reason
from model_server.metrics.requests import RequestMetrics
from model_server.metrics.shadow import PREFIX as SHADOW_PREFIX
from model_server.metrics.slots import check_metrics_dir
from model_server.middleware import LOOPBACK, InternalPages, Methods, WithoutRanges, allowed_methods
from model_server.model.bundle import BundleError, read_bundle
from model_server.model_routes import add_model_routes
from model_server.networks import Networks
from model_server.predict import PREDICT_ERRORS, PREDICT_REQUEST, ImageClassifier, Prediction, Predictor
from model_server.server.http1 import Overload
from model_server.settings import Settings, SettingsError, read_settings


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request alone: skips FastAPI's dependency injection, which costs 0.07 ms."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def create_app(settings: Settings, classifier: Optional[ImageClassifier] = None) -> FastAPI:
    """Build the application.

    Args:
        settings: of the server.
        classifier: the model; the one of `settings.bundle` is loaded when none is given.

    Raises:
        BundleError: the bundle cannot be used.
        SettingsError: a key or a network is malformed.
    """
    keys = ApiKeys(settings.api_keys)  # what is wrong is told before the model is loaded
    internal = Networks(settings.internal_pages_from, "internal_pages_from")
    ids = PredictionIds(settings.feedback_keys_file)
    if classifier is None:
        bundle = read_bundle(settings.bundle)  # before torch, whose import takes seconds
        from model_server.model.classifier import Classifier  # noqa: PLC0415 - imports torch

        classifier = Classifier(bundle, settings.allow_pickle, settings.engine)
    model = classifier

    metrics = ModelMetrics(model.manifest, model.reference, model.accuracy, settings, keys.names)
    predictor = Predictor(settings, model, metrics, keys, ids)
    needed = [Security(APIKeyHeader(name="X-API-Key", auto_error=False))] if keys.names else []  # for /docs
    predict_route, probe_route = (
        DirectRoute(
            path,
            answer,
            methods=["POST"],
            response_model=Prediction,
            openapi_extra=PREDICT_REQUEST,
            responses=PREDICT_ERRORS,
            dependencies=needed,
        )
        for path, answer in (("/predict", predictor.predict), ("/probe", predictor.probe))
    )
    routes: List[APIRoute] = [predict_route, probe_route]  # they are tried in order: the busiest one comes first
    if ids:
        feedback = Feedback(
            ids, model.manifest, FeedbackMetrics(metrics.registry, model.manifest, metrics.classes), predictor.authorize
        )
        routes.append(
            DirectRoute(
                "/feedback",
                feedback.take,
                methods=["POST"],
                response_model=FeedbackAnswer,
                openapi_extra=FEEDBACK_REQUEST,
                responses=FEEDBACK_ERRORS,
                dependencies=needed,
            )
        )
    interface: Dict[str, Any] = {
        "title": "Model server",
        "description": "Classifies images and counts what it does.",
        "routes": routes,
        "redirect_slashes": False,  # a redirect would copy the client's Host
    }
    app: FastAPI = FastAPIOffline(**interface) if settings.docs else FastAPI(**interface, openapi_url=None)
    for route in app.routes:
        if isinstance(route, Mount):  # the assets of /docs
            route.app = WithoutRanges(route.app)

    @app.get("/")
    async def root() -> Dict[str, str]:
        return {"status": "ok", "docs": "/docs"} if settings.docs else {"status": "ok"}

    @app.get("/healthz")
    async def healthz() -> Dict[str, Any]:
        """Answer as long as the process is alive."""
        return {"status": "alive", "live": True}

    @app.get("/readyz", responses={503: {"description": "The model has not answered yet, or the server is drained"}})
    async def readyz(request: Request) -> Dict[str, Any]:
        """Answer 200 once the model has done a forward pass, unless the server is drained."""
        if not model.ready:
            raise HTTPException(503, "The model is not ready.")
        if settings.is_drained() and not request.scope.get("self_check"):
            raise HTTPException(503, "The server is drained: it answers, and a balancer sends it nothing new.")
        return {"status": "ready", "ready": True}

    add_model_routes(app, model.manifest, predictor.authorize)
    if internal:
        app.add_middleware(InternalPages, networks=internal)
    allowed: Dict[str, List[str]] = {}
    app.add_middleware(Methods, allowed=allowed)
    origins = [origin.strip() for origin in settings.allowed_origins.split(",") if origin.strip()]
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.state.journal = LimitedLog("requests failed")  # the worker flushes it
    app.state.copies = predictor.copies  # the worker refreshes them
    count_answer = instrument(app, metrics, settings.metrics_dir)
    allowed.update(allowed_methods(app))

    def count_prediction() -> None:
        metrics.reject(Reason.OVERLOADED)
        count_answer("POST", predict_route.path, 503, 0.0)

    def count_probe() -> None:
        count_answer("POST", probe_route.path, 503, 0.0)

    on_refused = {predict_route.path.encode(): count_prediction, probe_route.path.encode(): count_probe}
    app.state.overload = Overload(on_refused, predictor.is_overloaded)
    app.state.count_timeout = lambda: metrics.reject(Reason.TIMEOUT)  # of a request whose head did not arrive
    return app


def instrument(
    app: FastAPI, metrics: ModelMetrics, metrics_dir: Optional[Path]
) -> Callable[[str, str, int, float], None]:
    """Serve the metrics at /metrics, and measure the requests to all routes that the app has by now.

    Returns what counts an answer that the app did not give: its method, path, status and seconds.

    Args:
        app: the finished app.
        metrics: those of its model.
        metrics_dir: where all workers have their files; None: this process is the only one, and has none.
    """
    page: Optional[Page] = None

    async def serve(request: Request) -> Response:
        counted = generate_latest(metrics.registry) if page is None else page.render()
        # A new connection is accepted by a worker that is idle; over a keep-alive one, a scrape would wait for the
        # predictions of its worker.
        headers = {"Content-Type": CONTENT_TYPE, "Connection": "close"}
        content = counted + metrics.constants
        # A fifth of the bytes for less than a millisecond; on the host itself, bytes cost nothing.
        elsewhere = request.client is not None and request.client.host not in LOOPBACK
        if elsewhere and "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["Content-Encoding"] = gzip.compress(content, compresslevel=1), "gzip"
        return Response(content, headers=headers)

    app.add_route("/metrics", serve)
    paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    requests = RequestMetrics(paths, metrics.registry, app.state.journal)
    app.add_middleware(requests.wrap)
    if metrics_dir is not None:
        # These have series that come into being later, in another process perhaps.
        lasting = requests.families | FEEDBACK_FAMILIES
        page = Page(
            metrics_dir,
            lambda key: (
                metrics.has(key.name, key.labels) or key.family in lasting or key.family.startswith(SHADOW_PREFIX)
            ),
        )
        page.render()  # parsed once here, before the fork, instead of in every worker
    return requests.count


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
