import asyncio
import gzip
import json
import socket
from pathlib import Path
from typing import List

import pytest

pytest.importorskip("benchmarks.capacity", exc_type=ImportError)

from benchmarks.capacity import Usage, address_of, configuration, in_turn, line, play, projected, total


def test_pages_come_in_turn_and_begin_anew() -> None:
    turn = in_turn([b"a", b"b", b"c"], 7)
    assert [next(turn) for _ in range(4)] == [b"b", b"c", b"a", b"b"]


def test_each_server_has_an_address_of_its_own() -> None:
    addresses = [address_of(server) for server in range(1000)]
    assert len(set(addresses)) == 1000
    assert all(socket.inet_aton(address) for address in addresses)


def ask(target: str, count: int) -> List[bytes]:
    """Return what a server answers to requests on one connection, without the heads."""
    host, port = target.split(":")
    answers = []
    with socket.create_connection((host, int(port)), 5) as connection, connection.makefile("rb") as file:
        for _ in range(count):
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            head = dict(line.split(b": ") for line in iter(file.readline, b"\r\n") if b": " in line)
            answers.append(file.read(int(head[b"Content-Length"])))
    return answers


def test_small_servers_answer_with_their_pages_and_count_the_bytes() -> None:
    pages = {"model_server": [gzip.compress(b"first"), gzip.compress(b"second")], "node": [gzip.compress(b"one")]}
    wire = [0]

    async def answers() -> List[List[bytes]]:
        listeners, targets = await play(pages, 2, wire)
        assert {job: len(of_job) for job, of_job in targets.items()} == {"model_server": 2, "node": 2}
        loop = asyncio.get_running_loop()
        asked = [await loop.run_in_executor(None, ask, target, 2) for target in targets["model_server"]]
        for listener in listeners:
            listener.close()
        return asked

    first, second = pages["model_server"]
    got = asyncio.run(answers())
    assert got == [[first, second], [second, first]]  # the second server is seven pages ahead
    assert wire[0] > sum(len(body) for bodies in got for body in bodies)


def test_prometheus_scrapes_every_second_and_has_the_roles_rules() -> None:
    given = json.loads(configuration({"node": ["127.1.0.1:1"]}))
    assert given["global"] == {"scrape_interval": "1s", "evaluation_interval": "1s"}
    assert [job["job_name"] for job in given["scrape_configs"]] == ["node"]
    (rules,) = given["rule_files"]
    assert {path.name for path in Path(rules).parent.glob(Path(rules).name)} >= {"model.yml", "host.yml"}


def test_samples_of_a_metric_are_added() -> None:
    page = '# HELP a b\na 1\na_total 5\nb{c="d e"} 2\nb{c="f"} 3.5e+01\n'
    assert total(page, "a") == 1
    assert total(page, "b") == 37


def test_a_line_is_found_and_prolonged() -> None:
    assert line([(1, 5), (2, 7), (4, 11)]) == pytest.approx((3, 2))
    usages = [Usage(servers, *[2.0 * servers] * 10) for servers in (1, 2, 4)]
    assert list(projected(usages, 100).values()) == pytest.approx([200] * 5)
