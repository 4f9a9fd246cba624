"""Copies of a host's services, taken and put back; files and SQLite are real, systemctl and dpkg-query are not."""

from __future__ import annotations

import ast
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from playbooks.files.backup import BackupError, archive, put_back, take
from playbooks.files.backup.services import COPY, Place, Service, services

PACKAGE = Path(__file__).parents[3] / "playbooks" / "files" / "backup"
SYSTEMCTL = """\
#!/bin/sh
echo "$*" >>"$(dirname "$0")/../log"
"""
DPKG_QUERY = """\
#!/bin/sh
for package; do :; done
case $package in
  prometheus) printf "installed 2.42.0+ds-5+b5" ;;
  grafana) printf "installed 12.0.0~stand-in" ;;
  prometheus-alertmanager) printf "config-files 0.25.0-1" ;;
esac
"""
BLOCK = "01HABCDEFGHJKMNPQRSTVWXYZ0"
SAMPLES = {
    f"{BLOCK}/meta.json": "meta",
    f"{BLOCK}/chunks/000001": "chunks",
    "wal/00000003": "old segment",
    "wal/00000004": "segment that grows",
    "chunks_head/000001": "head",
    "lock": "",
    "queries.active": "",
    "01HTMP.tmp-for-creation/chunks/000001": "half a block",
}


class DeathError(Exception):
    """Stands for a controller or a machine that dies."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with Prometheus, Grafana and the model server, without an Alertmanager."""
    (tmp_path / "bin").mkdir()
    for name, text in (("systemctl", SYSTEMCTL), ("dpkg-query", DPKG_QUERY)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    write(tmp_path / "var/lib/prometheus/metrics2", SAMPLES)
    write(tmp_path / "var/lib/grafana", {"secret_key": "key", "plugins/a": "not copied"})
    write(tmp_path / "etc/grafana", {"admin_password": "secret", "grafana.ini": "not copied"})
    write(tmp_path / "etc/model-server", {"deployment": "release: r\nbundle: b\nsettings: 1\nunits: u\n"})
    write(tmp_path / "var/lib/model-server", {"bundles/b/weights": "w", "settings/1.env": "A=1", "deployments": "d"})
    with closing(sqlite3.connect(tmp_path / "var/lib/grafana/grafana.db")) as database, database:
        database.execute("CREATE TABLE dashboard (title TEXT)")
        database.execute("INSERT INTO dashboard VALUES ('made by hand')")
    return tmp_path


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def texts(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def prometheus(root: Path) -> Service:
    return services(root)["prometheus"]


def data(root: Path) -> Path:
    return root / "var/lib/prometheus/metrics2"


def test_survey_finds_what_is_installed(root: Path) -> None:
    there, missing = take.survey(root)

    assert {name: service["version"] for name, service in there.items()} == {
        "prometheus": "2.42.0",
        "grafana": "12.0.0",
        "model_server": "r",
    }
    assert missing == ["Alertmanager"]


def test_samples_are_linked_and_what_grows_is_copied(root: Path) -> None:
    take.stage(root)

    copy = data(root) / COPY
    assert set(texts(copy)) == {
        name for name in SAMPLES if name not in ("lock", "queries.active") and "tmp" not in name
    }
    linked = {name for name in texts(copy) if (copy / name).samefile(data(root) / name)}
    assert linked == {f"{BLOCK}/meta.json", f"{BLOCK}/chunks/000001", "wal/00000003"}


def test_samples_are_linked_again_when_a_block_was_compacted_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, compacted = take.link, data(root) / "01HCOMPACTED00000000000000"

    def compact(source: Path, target: Path) -> None:
        if source.name == "wal" and not compacted.exists():
            (data(root) / BLOCK).rename(compacted)
        link(source, target)

    monkeypatch.setattr(take, "link", compact)
    take.stage(root)

    assert {path.name for path in (data(root) / COPY).iterdir()} == {compacted.name, "wal", "chunks_head"}


def test_database_is_copied_whole_while_grafana_writes(root: Path) -> None:
    file = root / "var/lib/grafana/grafana.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as grafana:
        grafana.execute("PRAGMA journal_mode = WAL")
        grafana.execute("INSERT INTO dashboard VALUES ('in the write-ahead log')")
        grafana.execute("BEGIN")
        grafana.execute("INSERT INTO dashboard VALUES ('not yet committed')")
        take.stage(root)

    with closing(sqlite3.connect(file.parent / COPY / "grafana.db")) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        titles = copy.execute("SELECT title FROM dashboard").fetchall()
    assert titles == [("made by hand",), ("in the write-ahead log",)]


def test_database_without_a_key_of_its_own_takes_grafanas_default_along(root: Path) -> None:
    (root / "var/lib/grafana/secret_key").unlink()
    take.stage(root)

    assert (root / "var/lib/grafana" / COPY / "secret_key").read_text() == "SW2YcwTIb9zpOOhoPsMm"


def test_file_that_is_no_database_is_said(root: Path) -> None:
    (root / "var/lib/grafana/grafana.db").write_text("no database, whatever its name says" * 100)

    with pytest.raises(BackupError, match=r"grafana\.db cannot be copied: file is not a database"):
        take.stage(root)


def test_parts_are_bounded_and_have_every_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(take, "PART", 10000)
    parts = take.stage(root)

    assert len(parts) > 4
    assert all(part.size <= 10000 or len(part.paths) == 1 for part in parts)
    copied = [path for part in parts if part.service == "prometheus" for path in part.paths]
    assert len(copied) == len(set(copied))
    assert set(texts(data(root) / COPY)) <= set(copied)


def test_drop_leaves_the_data_as_it_was(root: Path) -> None:
    before = texts(root)
    take.stage(root)
    take.drop(root)

    assert texts(root) == before


def carry(root: Path, file: Path) -> None:
    """Take a copy, change everything, and unpack the copy beside it."""
    parts = take.stage(root)
    packed = []
    for number, part in enumerate(parts):
        archive_ = file.with_suffix(f".{number}")
        assert take.pack(root, number, archive_)["sha256"] == take.sha256(archive_)
        packed.append((part, archive_))
    take.drop(root)
    for name, service in services(root).items():
        if any(part.service == name for part in parts):
            put_back.prepare(service)
    for part, archive_ in packed:
        put_back.unpack(services(root)[part.service].places[part.place], archive_)
        archive_.unlink()


def test_copy_that_was_carried_away_is_put_back(root: Path) -> None:
    before = {path: text for path, text in texts(data(root)).items() if path in SAMPLES}
    carry(root, root / "archive")
    shutil.rmtree(data(root) / BLOCK)
    write(data(root), {"wal/00000004": "other", "01HNEW/meta.json": "new"})
    put_back.swap(prometheus(root))
    put_back.keep(prometheus(root))

    assert texts(data(root)) == before
    assert (root / "log").read_text() == "stop prometheus.service\nstart prometheus.service\n"


@pytest.mark.parametrize("steps", range(10))
@pytest.mark.parametrize("steps_of_the_return", [None, 0, 2, 5])
def test_interruption_at_any_rename_loses_nothing(
    root: Path, steps: int, steps_of_the_return: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry(root, root / "archive")
    write(data(root), {"wal/00000004": "newer", "01HNEW/meta.json": "new"})
    before = {name: text for name, text in texts(data(root)).items() if not name.startswith(".restore")}
    with suppress(DeathError):
        dies_after(steps, monkeypatch, lambda: put_back.swap(prometheus(root)))
    if steps_of_the_return is not None:
        with suppress(DeathError):
            dies_after(steps_of_the_return, monkeypatch, lambda: put_back.settle(prometheus(root)))
    put_back.settle(prometheus(root))

    assert texts(data(root)) == before


def dies_after(renames: int, monkeypatch: pytest.MonkeyPatch, do: Callable[[], Any]) -> None:
    rename, left = Path.rename, [renames]

    def count(path: Path, target: Path) -> Path | None:
        if not left[0]:
            raise DeathError
        left[0] -= 1
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", count)
        do()


def test_service_that_wrote_before_the_return_does_not_mix_its_files(root: Path) -> None:
    carry(root, root / "archive")
    before = {name: text for name, text in texts(data(root)).items() if not name.startswith(".restore")}
    put_back.swap(prometheus(root))
    write(data(root), {"01HFROMTHEBACKUP/meta.json": "x", "wal/00000005": "x"})
    put_back.settle(prometheus(root))

    assert texts(data(root)) == before


def test_restored_grafana_has_no_log_of_the_former_database(root: Path) -> None:
    carry(root, root / "archive")
    write(root / "var/lib/grafana", {"grafana.db-wal": "of the former"})
    put_back.swap(services(root)["grafana"])

    assert not (root / "var/lib/grafana/grafana.db-wal").exists()
    assert (root / "var/lib/grafana/plugins/a").exists()
    assert (root / "etc/grafana/grafana.ini").exists()


MANIFEST = {"services": {"prometheus": {"version": "2.42.0", "bytes": 10**9}}}


@pytest.mark.parametrize(
    ("version", "room", "words"),
    [
        ("2.42.0", 10**10, ""),
        ("3.1.0", 10**10, ""),
        ("2.15.2", 10**10, "The backup is from Prometheus 2.42.0, which 2.15.2 on this host may not read"),
        ("2.42.0", 10**8, "Prometheus needs 1 000 MB for the backup, beside what it has, and there are 100 MB free"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(version: str, room: int, words: str) -> None:
    there = {"prometheus": {"title": "Prometheus", "version": version, "bytes": 0}}
    problems = archive.problems(MANIFEST, there, {"prometheus": room})

    assert [problem.startswith(words) for problem in problems] == ([True] if words else [])


def test_backup_of_a_service_that_is_not_there_is_no_problem() -> None:
    assert archive.problems(MANIFEST, {}, {}) == []


def test_all_entries_of_a_place_or_the_named_ones(tmp_path: Path) -> None:
    write(tmp_path, {"a": "", "b": "", ".backup/c": ""})

    assert [path.name for path in Place(tmp_path).entries()] == ["a", "b"]
    assert [path.name for path in Place(tmp_path, ("b", "c")).entries()] == ["b"]


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda file: file.stem)
def test_is_made_only_of_what_python_3_8_knows(file: Path) -> None:
    ast.parse(file.read_text(), feature_version=(3, 8))
