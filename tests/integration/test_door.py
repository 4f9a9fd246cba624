"""The front door: what clients get through it, what it keeps out, and that strangers lock nobody out."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.integration.conftest import Tell
from tests.integration.machines import MODEL_SERVER_PORT, Machine, ModelServer, Prometheus, wait_until
from tests.integration.playbooks import Ansible

IMAGE = sorted((Path(__file__).parents[2] / "load_test" / "images").glob("*.jp*g"))[0].read_bytes()
TOO_LARGE = bytes(22_000_000)
NGINX = """
worker_processes 1;
pid /run/test-nginx.pid;
events {}
http {
    access_log off;
    client_max_body_size 0;
    server { listen 127.0.0.1:8081; location / { proxy_pass http://127.0.0.1:8000; } }
}
"""


@pytest.fixture(scope="module")
def door(server: Machine) -> Iterator[httpx.Client]:
    with server.door() as client:
        yield client


def predict(client: httpx.Client, image: bytes = IMAGE, headers: dict[str, str] | None = None) -> httpx.Response:
    return client.post("/predict", files={"file": ("sample.jpg", image, "image/jpeg")}, headers=headers)


def test_image_is_classified(door: httpx.Client) -> None:
    answer = predict(door)

    assert answer.status_code == 200, answer.text
    assert answer.json()["likely_class"] in {"apple", "grape", "lemon"}


def test_http_leads_to_https(server: Machine) -> None:
    with server.http(80) as client:
        answer = client.post("/predict?a=b", content=IMAGE)

    assert answer.status_code == 308
    assert answer.headers["Location"] == f"https://{server.address}/predict?a=b"


@pytest.mark.parametrize(
    ("newest", "taken"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_encryption_is_that_of_today(server: Machine, newest: ssl.TLSVersion, taken: bool) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # so that it is not this side that refuses
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
    with httpx.Client(base_url=f"https://{server.address}", verify=context, trust_env=False) as client:
        try:
            assert client.get("/healthz").status_code == 200
            assert taken
        except httpx.TransportError as error:
            assert not taken, error  # noqa: PT017 - what is taken depends on the case


@pytest.mark.parametrize("token", ["h2c", "websocket", "foo"])
def test_other_protocols_are_not_spoken(door: httpx.Client, token: str) -> None:
    answer = predict(door, headers={"Connection": "Upgrade", "Upgrade": token})

    assert answer.status_code == 200, answer.text


def test_body_that_is_too_large_is_told_so(server: Machine) -> None:
    for _ in range(5):
        with server.door() as client:
            assert predict(client, TOO_LARGE).status_code == 413


@contextmanager
def nginx(server: Machine) -> Iterator[str]:
    """Run nginx in front of the model server, as its `proxy_pass` is by default; yield its URL on the machine."""
    server.run("printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d")
    server.run("DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends nginx-light")
    server.run("rm /usr/sbin/policy-rc.d; printf '%%s' %s > /run/test-nginx.conf", NGINX)
    server.run("nginx -c /run/test-nginx.conf")
    try:
        yield "http://127.0.0.1:8081"
    finally:
        server.run("nginx -c /run/test-nginx.conf -s quit")
        server.run("DEBIAN_FRONTEND=noninteractive apt-get purge --yes --quiet --autoremove nginx-light nginx-common")


def test_nginx_gets_the_answers_too(server: Machine) -> None:
    with nginx(server) as url:
        server.run("head --bytes 22000000 /dev/zero > /run/large; head --bytes 1000000 /dev/zero > /run/small")
        curl = "curl --silent --show-error --output /dev/null --write-out '%{http_code}' --form"
        too_large = [server.run(f"{curl} 'file=@/run/large;type=image/jpeg' {url}/predict") for _ in range(10)]
        nowhere = [server.run(f"{curl} 'file=@/run/small;type=image/jpeg' {url}/nope") for _ in range(10)]
        server.run("rm /run/large /run/small")

    assert too_large == ["413"] * 10
    assert nowhere == ["404"] * 10


def test_address_of_the_client_is_passed_on_and_no_other_is_believed(server: Machine, stranger: Machine) -> None:
    curl = "curl --insecure --silent --header 'X-Forwarded-For: 192.0.2.66' --header %s --data x https://server/predict"
    own = stranger.address

    def told() -> bool:
        number = f"door-{time.time():.0f}"  # ten lines a minute are written: another one may be
        stranger.run(curl, f"X-Request-Id: {number}")
        time.sleep(1.5)
        return f"from {own}, id {number}" in server.journal("model-server", since="-1min", lines=400)

    wait_until(told, timeout=150, what="line of the journal with the client's address")
    assert "192.0.2.66" not in server.journal("model-server", lines=2000)


OPERATOR = ("duty", "rehearsal-of-the-duty")  # molecule/shared/host_vars


@pytest.mark.parametrize(
    ("page", "shows"),
    [
        ("prometheus/classic/graph", "/prometheus/"),
        ("prometheus/api/v1/query?query=up", "server:8404"),
        ("metrics", "predictions_total"),
    ],
)
def test_operators_pages_ask_for_a_password(server: Machine, page: str, shows: str) -> None:
    with server.door() as client:
        assert client.get(f"/{page}").status_code == 401
        assert client.get(f"/{page}", auth=("duty", "wrong")).status_code == 401
        answer = client.get(f"/{page}", auth=OPERATOR)

    assert answer.status_code == 200
    assert shows in answer.text


def test_alertmanager_is_behind_the_door(server: Machine) -> None:
    with server.door(auth=OPERATOR) as client:
        assert client.get("/alertmanager/-/healthy").status_code == 200


def test_password_is_only_on_the_host_as_a_hash(server: Machine) -> None:
    assert server.status("grep --quiet --recursive %s /etc/haproxy", OPERATOR[1]) == 1


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


def test_metrics_of_the_door_are_scraped(server: Machine, prometheus: Prometheus) -> None:
    assert prometheus.total('up{job="haproxy", instance="server:8404"}') == 1
    assert prometheus.total('haproxy_server_http_responses_total{proxy="model_servers", code="2xx"}') > 0


def test_foreign_haproxy_is_not_overwritten(server: Machine, ansible: Ansible) -> None:
    server.run("sed --in-place=.own 1d /etc/haproxy/haproxy.cfg")
    try:
        status, said = ansible.attempt("ansible-playbook", "playbooks/preflight.yml")
    finally:
        server.run("mv /etc/haproxy/haproxy.cfg.own /etc/haproxy/haproxy.cfg")

    assert status != 0
    assert "another haproxy's configuration, which would be overwritten" in said


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
    assert predict(door).status_code == 200


def test_one_client_asks_a_limited_number_of_times(door: httpx.Client, stranger: Machine) -> None:
    urls = "https://server/?[1-3000]"
    curl = "curl --insecure --silent --output /dev/null --write-out '%{http_code}\\n'"
    codes = stranger.run(f"{curl} '{urls}' | sort | uniq -c")
    told = stranger.run("curl --insecure --silent https://server/")

    found = {line.split()[1]: int(line.split()[0]) for line in codes.splitlines()}
    assert set(found) == {"200", "429"}, found
    assert found["200"] <= 2100
    assert "200 requests per second" in json.loads(told)["detail"]
    assert predict(door).status_code == 200


def test_door_comes_back(server: Machine, door: httpx.Client, tell: Tell) -> None:
    server.run("systemctl kill --kill-who=all --signal=KILL haproxy")

    back = wait_until(lambda: predict(door).status_code == 200, timeout=20, what="front door")
    tell("SIGKILL of the front door", f"answers again after {back:.1f} s")


# Attacks, each for some seconds: what a stranger runs with the standard library alone.
ATTACK = """
import asyncio, resource, ssl, sys, time
kind, host, port, count, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
context = None
if port == 443:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
resource.setrlimit(resource.RLIMIT_NOFILE, (16384, 16384))
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
async def main():
    head = b"POST /predict HTTP/1.1\\r\\nHost: x\\r\\n"
    if kind == "connections":
        await knock()
    elif kind == "heads":
        await asyncio.gather(*(hold(head, b"X-A: b\\r\\n") for _ in range(count)))
    else:
        whole = head + b"Content-Type: image/jpeg\\r\\nContent-Length: 100000\\r\\n\\r\\n"
        await asyncio.gather(*(hold(whole, b"x") for _ in range(count)))
asyncio.run(main())
print(opened, failed)
"""
SECONDS = 20


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
        python = ["docker", "exec", stranger.container, "python3"]
        return Attacked(request.param, python, "server", 443, server.door)
    return Attacked(request.param, ["python3"], server.address, MODEL_SERVER_PORT, model_server.http)


@pytest.mark.parametrize(("kind", "count"), [("heads", 3000), ("bodies", 500), ("connections", 200)])
def test_stranger_locks_nobody_out(attacked: Attacked, kind: str, count: int, tell: Tell) -> None:
    arguments = [kind, attacked.host, str(attacked.port), str(count), str(SECONDS)]
    command = [*attacked.python, "-c", ATTACK, *arguments]
    times, wrong = [], []
    with attacked.client() as client, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attack:
        while attack.poll() is None:
            began = time.monotonic()
            try:
                answer = predict(client)
                if answer.status_code != 200:
                    wrong.append(f"{answer.status_code} {answer.text}")
            except httpx.TransportError as error:
                wrong.append(repr(error))
            times.append(time.monotonic() - began)
            time.sleep(max(0, 0.05 - times[-1]))
        said, _ = attack.communicate()

    assert attack.returncode == 0
    opened, failed = said.split()
    p99 = sorted(times)[int(len(times) * 0.99)]
    tell(
        f"{count} {kind}{' a second' if kind == 'connections' else ', slow'}, at the {attacked.name}",
        f"{opened} connections had, {failed} refused; {len(wrong)} of {len(times)} requests of others failed, "
        f"p99 {1000 * p99:.0f} ms",
    )
    assert wrong == []
    assert p99 < 0.3
