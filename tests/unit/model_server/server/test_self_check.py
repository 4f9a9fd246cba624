import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from model_server.server.self_check import SelfCheckError, check


async def ready(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ready")


async def ready_for_itself(request: Request) -> PlainTextResponse:
    assert request.client is not None
    return PlainTextResponse("ready", status_code=200 if request.client.host == "127.0.0.1" else 403)


async def starting(request: Request) -> PlainTextResponse:
    return PlainTextResponse("not yet", status_code=503)


async def predict(request: Request) -> PlainTextResponse:
    image = await request.body()
    assert image.startswith(b"\xff\xd8"), "a JPEG"
    assert request.headers["content-length"] == str(len(image))
    return PlainTextResponse("lemon")


async def fail(request: Request) -> PlainTextResponse:
    raise RuntimeError("a lemon")


def app(ready: object, predict: object) -> Starlette:
    return Starlette(routes=[Route("/readyz", ready), Route("/predict", predict, methods=["POST"])])  # type: ignore[arg-type]


def test_an_app_that_predicts_passes() -> None:
    check(app(ready, predict))


def test_the_check_comes_from_the_host_itself() -> None:
    check(app(ready_for_itself, predict))


def test_an_app_that_is_not_ready_does_not() -> None:
    with pytest.raises(
        SelfCheckError, match=r"^GET /readyz was answered with 503 in a check before the start: not yet$"
    ):
        check(app(starting, predict))


def test_an_app_that_cannot_predict_does_not() -> None:
    sentence = r"^POST /predict failed in a check before the start: RuntimeError\('a lemon'\)\.$"
    with pytest.raises(SelfCheckError, match=sentence):
        check(app(ready, fail))


def test_an_app_without_the_route_does_not() -> None:
    with pytest.raises(SelfCheckError, match="GET /readyz was answered with 404"):
        check(Starlette())
