"""The front door: what clients and operators get through it."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.integration.conftest import Tell
from tests.integration.machines import Machine, Prometheus, wait_until
from tests.integration.playbooks import Ansible
from tests.integration.traffic import IMAGES

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


def predict(client: httpx.Client, image: bytes = IMAGES[0], headers: dict[str, str] | None = None) -> httpx.Response:
    return client.post("/predict", files={"file": ("sample.jpg", image, "image/jpeg")}, headers=headers)


def test_image_is_classified(door: httpx.Client) -> None:
    answer = predict(door)

    assert answer.status_code == 200, answer.text
    assert answer.json()["likely_class"] in {"apple", "grape", "lemon"}


def test_http_leads_to_https(server: Machine) -> None:
    with server.http(80) as client:
        answer = client.post("/predict?a=b", content=IMAGES[0])

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


def test_early_answers_do_not_break_the_next_request(server: Machine) -> None:
    """haproxy 2.6 keeps the body of such a request to itself, and reuses the connection to the model server."""
    curl = "curl --insecure --silent --output /dev/null --write-out '%{http_code} ' --data x https://127.0.0.1/predict"
    # On a busy machine it ends one in fifty such streams with an error, after the answer: curl has that, and fails.
    told = server.run(f"for i in $(seq 100); do {curl} || true; done").split()

    assert told == ["415"] * 100


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
        ("metrics/", "predictions_total"),
        ("%6detrics", "predictions_total"),
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


def test_door_comes_back(server: Machine, door: httpx.Client, tell: Tell) -> None:
    server.run("systemctl kill --kill-who=all --signal=KILL haproxy")

    back = wait_until(lambda: predict(door).status_code == 200, timeout=20, what="front door")
    tell("SIGKILL of the front door", f"answers again after {back:.1f} s")
