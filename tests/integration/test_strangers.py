"""What strangers can do: look at nothing that is not for them, and lock nobody out.

They come last: their images are not typical, and would be drift.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any, NamedTuple

import httpx
import pytest
from PIL import Image

from tests.integration.conftest import Tell
from tests.integration.machines import MODEL_SERVER_PORT, Machine, ModelServer
from tests.integration.traffic import IMAGES, send


def test_who_guesses_is_refused(stranger: Machine) -> None:
    curl = "curl --insecure --silent --output /dev/null --write-out '%{http_code}\\n' --user duty:wrong"
    codes = stranger.run(f"{curl} 'https://server/prometheus/?[1-30]'").split()

    assert codes[0] == "401"
    assert codes[-1] == "429"


@pytest.mark.parametrize("page", ["docs", "redoc", "openapi.json", "healthz", "readyz"])
def test_pages_for_operators_are_not_for_strangers(stranger: Machine, door: httpx.Client, page: str) -> None:
    curl = (
        "curl --insecure --silent --output /dev/null --write-out '%{http_code}' --header 'X-Forwarded-For: 127.0.0.1'"
    )

    assert stranger.run(f"{curl} https://server/{page}") == "403"
    assert door.get(f"/{page}").status_code == 200


# Opens connections, and prints how many of them were kept open after a while.
OPEN = """
import socket, sys, time
sockets = []
for _ in range(int(sys.argv[1])):
    try:
        sockets.append(socket.create_connection(("server", 443), 5))
    except ConnectionError:
        pass
time.sleep(1)
kept = 0
for each in sockets:
    each.setblocking(False)
    try:
        each.recv(1)
    except BlockingIOError:
        kept += 1
    except OSError:
        pass
print(kept)
"""


def test_one_client_has_a_limited_number_of_connections(door: httpx.Client, stranger: Machine) -> None:
    assert int(stranger.run("python3 -c %s 600", OPEN)) <= 256
    assert not send(door, IMAGES[0]).error


def test_one_client_asks_a_limited_number_of_times(door: httpx.Client, stranger: Machine) -> None:
    urls = "https://server/?[1-3000]"
    # Twenty at once: one after the other, a slow machine would stay below the limit.
    curl = "curl --insecure --silent --parallel --parallel-max 20 --output /dev/null --write-out '%{http_code}\\n'"
    codes = stranger.run(f"{curl} '{urls}' | sort | uniq -c")
    told = stranger.run("curl --insecure --silent https://server/")

    found = {line.split()[1]: int(line.split()[0]) for line in codes.splitlines()}
    assert set(found) == {"200", "429"}, found
    assert found["200"] <= 2100
    assert "200 requests per second" in json.loads(told)["detail"]
    assert not send(door, IMAGES[0]).error


# Attacks, each for some seconds: what a stranger runs with the standard library alone.
ATTACK = """
import asyncio, base64, json, resource, ssl, sys, time
kind, host, port, count, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
context = None
if port == 443:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
end = time.monotonic() + seconds
opened = failed = 0
async def hold(first, drip):
    global opened, failed
    while time.monotonic() < end:
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), 5)
            opened += 1
            writer.write(first)
            while time.monotonic() < end:
                writer.write(drip)
                await writer.drain()
                try:
                    if not await asyncio.wait_for(reader.read(1000), 1):
                        break
                except asyncio.TimeoutError:
                    pass
            writer.close()
        except (OSError, asyncio.TimeoutError):
            failed += 1
            await asyncio.sleep(0.5)
async def send(images):
    global opened, failed
    while time.monotonic() < end:
        for image in images:
            try:
                reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), 5)
                opened += 1
                writer.write(head + b"Connection: close\\r\\nContent-Type: image/jpeg\\r\\n")
                writer.write(b"Content-Length: %d\\r\\n\\r\\n" % len(image) + image)
                await reader.read()
                writer.close()
            except OSError:
                failed += 1
async def knock():
    global opened, failed
    tasks = set()
    async def once():
        global opened, failed
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 5)
            opened += 1
            writer.close()
        except (OSError, asyncio.TimeoutError):
            failed += 1
    while time.monotonic() < end:
        tasks.add(asyncio.ensure_future(once()))
        await asyncio.sleep(1 / count)
    await asyncio.gather(*tasks)
head = b"POST /predict HTTP/1.1\\r\\nHost: x\\r\\n"
async def main():
    if kind == "images":
        images = [base64.b64decode(each) for each in json.load(sys.stdin)]
        await asyncio.gather(*(send(images) for _ in range(count)))
    elif kind == "connections":
        await knock()
    elif kind == "heads":
        await asyncio.gather(*(hold(head, b"X-A: b\\r\\n") for _ in range(count)))
    else:
        whole = head + b"Content-Type: image/jpeg\\r\\nContent-Length: 100000\\r\\n\\r\\n"
        await asyncio.gather(*(hold(whole, b"x") for _ in range(count)))
asyncio.run(main())
print(opened, failed)
"""
SECONDS = 15  # longer than a head may take
WORDS = {
    "heads": "{} slow heads",
    "bodies": "{} slow bodies",
    "connections": "{} connections a second",
    "images": "hostile images by {} clients",
}


def hostile_images() -> list[bytes]:
    """Return images that are damaged, that promise too much work, and one that is as dear as is accepted."""

    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    progressive = encoded(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    return [
        IMAGES[0][: len(IMAGES[0]) // 2],
        bytes(range(256)) * 1000,
        progressive[:-2] + 2500 * scan + progressive[-2:],
        encoded(Image.new("1", (12000, 12000)), "PNG"),
        encoded(Image.new("RGB", (7000, 7000)), "JPEG"),
    ]


class Attacked(NamedTuple):
    name: str
    python: list[str]  # where the attack comes from
    host: str
    port: int
    client: Callable[[], httpx.Client]  # of others, meanwhile


@pytest.fixture(params=["front door", "server itself"])
def attacked(request: pytest.FixtureRequest, server: Machine, stranger: Machine, model_server: ModelServer) -> Attacked:
    """The door is attacked from another machine, the server itself from this one, which its firewall lets through."""
    if request.param == "front door":
        python = ["docker", "exec", "--interactive", stranger.container, "python3"]
        return Attacked(request.param, python, "server", 443, server.door)
    return Attacked(request.param, ["python3"], server.address, MODEL_SERVER_PORT, model_server.http)


@pytest.mark.parametrize(("kind", "count"), [("heads", 3000), ("bodies", 500), ("connections", 200), ("images", 4)])
def test_stranger_locks_nobody_out(attacked: Attacked, kind: str, count: int, tell: Tell) -> None:
    arguments = [kind, attacked.host, str(attacked.port), str(count), str(SECONDS)]
    command = [*attacked.python, "-c", ATTACK, *arguments]
    requests, images = [], cycle(IMAGES)
    attack = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with attacked.client() as client, attack:
        assert attack.stdin is not None
        if kind == "images":
            json.dump([base64.b64encode(image).decode() for image in hostile_images()], attack.stdin)
        attack.stdin.close()
        while attack.poll() is None:
            requests.append(send(client, next(images)))
            time.sleep(max(0, requests[-1].began + 0.05 - time.time()))
        assert attack.stdout is not None
        said = attack.stdout.read()

    assert attack.returncode == 0
    opened, failed = said.split()
    times = sorted(request.ended - request.began for request in requests)
    p99 = times[int(len(times) * 0.99)]
    wrong = [request.error for request in requests if request.error]
    tell(
        f"{WORDS[kind].format(count)}, at the {attacked.name}",
        f"{opened} connections had, {failed} refused; {len(wrong)} of {len(times)} requests of others failed, "
        f"p99 {1000 * p99:.0f} ms",
    )
    assert wrong == []
    assert p99 < 0.3
