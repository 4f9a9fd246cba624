"""Rolling over on a host: what serves, what is put back, what is kept; the files are real, systemctl is not."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[3] / "roles" / "model_server" / "files" / "deployment.py"
FAILURE = "model server: weights.pt has another checksum."
SOCKET = "# Managed\n[Socket]\nListenStream=0.0.0.0:8000\n\n[Install]\nWantedBy=sockets.target\n"
# Reloads and restarts as the real one, and copies what should run to what runs; a bundle named `bad` does not load.
SYSTEMCTL = """\
#!/bin/sh
cd "$(dirname "$0")/.."
echo "$*" >>log
case $1 in
  is-active) if [ -e active ]; then echo active; else echo inactive; fi ;;
  show)
    case $2 in
      *CanReload) if [ -e can_reload ]; then echo yes; else echo no; fi ;;
      *MainPID) cat main_pid ;;
    esac ;;
  stop) rm active ;;
  restart | reload)
    [ "$1" = reload ] || rm -f active
    [ -e taken_over ] && echo 2 >main_pid
    bundle=$(realpath var/lib/model-server/current)
    case $bundle in */bad) echo "Job for model-server.service failed." >&2; exit 1 ;; esac
    touch active
    cp etc/model-server/deployment run/model-server-deployment
    release=$(realpath opt/model-server/current)
    echo "${release##*/} ${bundle##*/} $(cat etc/model-server/model-server.env)" >>served ;;
esac
"""
JOURNALCTL = f"""\
#!/bin/sh
case "$*" in
  *--show-cursor*) echo "-- cursor: s=1" ;;
  *--output=json*)
    cat <<'JOURNAL'
{{"MESSAGE": "{FAILURE}", "SYSLOG_IDENTIFIER": "python"}}
{{"MESSAGE": "Traceback", "SYSLOG_IDENTIFIER": "python"}}
{{"MESSAGE": "{FAILURE}", "SYSLOG_IDENTIFIER": "python"}}
{{"MESSAGE": "Reload failed.", "SYSLOG_IDENTIFIER": "systemd"}}
JOURNAL
esac
"""


class Machine:
    """A root directory with the releases a, b, c… and the bundles that a test asks for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for place in ("opt/model-server/releases", "var/lib/model-server/bundles", "etc/model-server/next", "bin"):
            (root / place).mkdir(parents=True)
        for place in ("etc/systemd/system", "run/model-server"):
            (root / place).mkdir(parents=True)
        for name, text in (("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL), ("systemd-analyze", "#!/bin/sh\n")):
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)
        (root / "can_reload").touch()
        (root / "main_pid").write_text("1\n")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        code = f"import pathlib, runpy; runpy.run_path({str(PROGRAM)!r})['main'](root=pathlib.Path({str(self.root)!r}))"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    def lay_out(self, release: str, bundle: str, settings: str = "1", unit: str = "u", socket: str = SOCKET) -> None:
        """Do what the role does before it rolls over."""
        directory = self.root / "opt/model-server/releases" / release
        directory.mkdir(exist_ok=True)
        (directory / "venv/bin").mkdir(parents=True, exist_ok=True)
        for name in (".complete", "release.env", "venv/bin/model-server"):
            (directory / name).touch()
        (self.root / "var/lib/model-server/bundles" / bundle).mkdir(exist_ok=True)
        files = {
            "deployment": f"release: {release}\nbundle: {bundle}\nsettings: {settings}\nunits: {unit}{len(socket)}\n",
            "model-server.env": f"settings {settings}",
            "model-server.service": unit,
            "model-server.socket": socket,
        }
        for name, text in files.items():
            (self.root / "etc/model-server/next" / name).write_text(text)

    def deploy(self, *names: str, **options: str) -> subprocess.CompletedProcess[str]:
        self.lay_out(*names, **options)
        return self.run("apply")

    def rollback(self, *release: str) -> subprocess.CompletedProcess[str]:
        return self.run("rollback", *release)

    @property
    def served(self) -> list[str]:
        """What has served, one after the other."""
        return (self.root / "served").read_text().splitlines()

    def names(self, place: str) -> set[str]:
        return {path.name for path in (self.root / place).iterdir()}

    def told(self) -> list[str]:
        """What systemd was told to do with the service."""
        verbs = [line.split()[0] for line in (self.root / "log").read_text().splitlines()]
        return [verb for verb in verbs if verb in ("reload", "restart", "stop", "daemon-reload")]

    def texts(self) -> dict[str, Any]:
        """What a start would serve."""
        files = ("model-server/model-server.env", "model-server/deployment", "systemd/system/model-server.service")
        links = ("opt/model-server", "var/lib/model-server")
        return {
            **{file: (self.root / "etc" / file).read_text() for file in files},
            **{link: (self.root / link / "current").resolve().name for link in links},
        }


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_first_deployment_is_started_and_recorded(machine: Machine) -> None:
    result = machine.deploy("a", "m")

    assert result.returncode == 0, result.stderr
    assert machine.told() == ["daemon-reload", "restart"]
    header, line = (machine.root / "var/lib/model-server/deployments").read_text().splitlines()
    assert header.startswith("#")
    assert line.split()[1:] == ["a", "m", "1"]


def test_next_deployment_is_a_reload(machine: Machine) -> None:
    machine.deploy("a", "m")
    (machine.root / "log").unlink()

    assert machine.deploy("b", "n", settings="2").stdout == "release b with bundle n serves.\n"

    assert machine.told() == ["reload"]
    assert machine.served[-1] == "b n settings 2"


def test_new_unit_is_reloaded_first_and_then_restarted(machine: Machine) -> None:
    machine.deploy("a", "m")
    (machine.root / "log").unlink()

    machine.deploy("b", "m", unit="other")

    assert machine.told() == ["daemon-reload", "reload", "restart"]
    assert f"units: other{len(SOCKET)}" in (machine.root / "run/model-server-deployment").read_text()


def test_what_cannot_hand_over_is_restarted(machine: Machine) -> None:
    machine.deploy("a", "m")
    (machine.root / "can_reload").unlink()
    (machine.root / "log").unlink()

    machine.deploy("b", "m")

    assert machine.told() == ["restart"]


def test_socket_that_moves_is_closed_first(machine: Machine) -> None:
    machine.deploy("a", "m")
    (machine.root / "log").unlink()

    machine.deploy("a", "m", socket=SOCKET.replace("8000", "8001"))

    assert machine.told() == ["daemon-reload", "stop", "restart"]


def test_socket_that_stays_where_it_is_refuses_nobody(machine: Machine) -> None:
    machine.deploy("a", "m")
    (machine.root / "log").unlink()

    machine.deploy("a", "m", socket=SOCKET.replace("# Managed", "[Unit]\nStopWhenUnneeded=true\n# Managed"))

    assert machine.told() == ["daemon-reload", "reload", "restart"], "the socket was closed"


@pytest.mark.parametrize("unit", ["u", "other"])
def test_what_fails_leaves_all_as_it_was(machine: Machine, unit: str) -> None:
    machine.deploy("a", "m")
    before = machine.texts()

    result = machine.deploy("b", "bad", settings="2", unit=unit)

    assert result.returncode == 1
    assert result.stderr == (
        f"The deployment of release b with bundle bad failed:\n{FAILURE}\n"
        "What served before keeps serving: release a with bundle m.\n"
    )
    assert machine.texts() == before
    assert machine.served == ["a m settings 1"]
    assert (machine.root / "active").exists()


def test_what_fails_in_a_restart_is_put_back_and_started(machine: Machine) -> None:
    machine.deploy("a", "m")
    (machine.root / "can_reload").unlink()

    assert machine.deploy("b", "bad").returncode == 1

    assert machine.served == ["a m settings 1", "a m settings 1"]
    assert (machine.root / "active").exists()


def test_what_fails_after_it_has_taken_over_is_put_back_and_started(machine: Machine) -> None:
    machine.deploy("a", "m")
    (machine.root / "taken_over").touch()
    (machine.root / "log").unlink()

    assert machine.deploy("b", "bad").returncode == 1

    assert machine.told() == ["reload", "restart"]
    assert machine.served[-1] == "a m settings 1"


def test_first_deployment_that_fails_says_why(machine: Machine) -> None:
    result = machine.deploy("a", "bad")

    assert result.stderr == f"The deployment of release a with bundle bad failed:\n{FAILURE}\n"
    assert not (machine.root / "var/lib/model-server/deployments").exists()


def test_incomplete_release_is_not_served(machine: Machine) -> None:
    machine.lay_out("a", "m")
    (machine.root / "opt/model-server/releases/a/.complete").unlink()

    assert machine.run("apply").stderr == "On this host release a with bundle m is not complete.\n"


def test_rolling_back_twice_returns_to_the_first(machine: Machine) -> None:
    machine.deploy("a", "m", settings="1")
    machine.deploy("b", "n", settings="2")

    first, second = machine.rollback(), machine.rollback()

    assert first.stdout.startswith("release b with bundle n served; release a with bundle m serves now, ")
    assert second.stdout.startswith("release a with bundle m served; release b with bundle n serves now, ")
    assert machine.served[-2:] == ["a m settings 1", "b n settings 2"]


def test_rollback_skips_changes_of_settings(machine: Machine) -> None:
    machine.deploy("a", "m")
    machine.deploy("b", "m", settings="1")
    machine.deploy("b", "m", settings="2")

    machine.rollback()

    assert machine.served[-1] == "a m settings 1"


def test_named_release_comes_with_its_last_bundle(machine: Machine) -> None:
    for release, bundle in (("a", "m"), ("a", "n"), ("b", "n"), ("c", "m")):
        machine.deploy(release, bundle)

    assert machine.rollback("a").returncode == 0

    assert machine.served[-1] == "a n settings 1"


def test_release_without_the_console_script_is_not_a_choice(machine: Machine) -> None:
    machine.deploy("a", "m")
    machine.deploy("b", "m")
    (machine.root / "opt/model-server/releases/a/venv/bin/model-server").unlink()

    result = machine.rollback()

    assert result.returncode == 1
    assert (
        result.stderr
        == "There is nothing to go back to: release b with bundle m serves, and this host keeps no other.\n"
    )
    assert machine.run("list").stdout.split("Z ")[1:] == ["release b with bundle m, which serves\n"]
    assert machine.rollback("a").stderr == "There is no release 'a' to go back to; there are: b.\n"


def test_rollback_leaves_units_and_socket_alone(machine: Machine) -> None:
    machine.deploy("a", "m")
    machine.deploy("b", "m", unit="other", socket=SOCKET.replace("8000", "8001"))
    (machine.root / "log").unlink()

    machine.rollback()

    assert machine.told() == ["reload"]
    assert machine.texts()["systemd/system/model-server.service"] == "other"
    assert machine.texts()["model-server/deployment"].splitlines()[0] == "release: a"


def test_rollback_that_fails_leaves_all_as_it_was(machine: Machine) -> None:
    machine.deploy("a", "m")
    machine.deploy("b", "m")
    before = machine.texts()
    for link in (machine.root / "var/lib/model-server/bundles/m",):
        link.rename(link.with_name("bad"))
        link.symlink_to("bad")

    result = machine.rollback()

    assert result.returncode == 1
    assert result.stderr.endswith("What served before keeps serving: release b with bundle m.\n")
    assert machine.texts()["model-server/deployment"] == before["model-server/deployment"]


def test_nothing_to_roll_back_to_is_explained(machine: Machine) -> None:
    nothing = machine.rollback()
    machine.deploy("a", "m")

    assert nothing.stderr == "Nothing has been deployed on this host yet; run site.yml.\n"
    assert machine.rollback().stderr == (
        "There is nothing to go back to: release a with bundle m serves, and this host keeps no other.\n"
    )


@pytest.mark.parametrize("name", ["d", "../a", "a/../a", "/"])
def test_unknown_release_is_refused_with_the_known_ones(machine: Machine, name: str) -> None:
    machine.deploy("a", "m")
    machine.deploy("b", "m")

    assert machine.rollback(name).stderr == f"There is no release {name!r} to go back to; there are: b, a.\n"


def test_release_that_serves_is_left_alone(machine: Machine) -> None:
    machine.deploy("a", "m")
    served = machine.served

    assert machine.rollback("a").stdout == "release a with bundle m serves already; nothing was changed.\n"
    assert machine.served == served


def test_three_releases_and_bundles_are_kept(machine: Machine) -> None:
    for number in range(5):
        machine.deploy(f"r{number}", f"b{number}", settings=str(number))

    assert machine.names("opt/model-server/releases") == {"r2", "r3", "r4"}
    assert machine.names("var/lib/model-server/bundles") == {"b2", "b3", "b4"}
    assert machine.names("var/lib/model-server/settings") == {"2.env", "3.env", "4.env"}
    listed = [line.split() for line in machine.run("list").stdout.splitlines()]
    assert [(words[2], words[5].rstrip(",")) for words in listed] == [("r4", "b4"), ("r3", "b3"), ("r2", "b2")]


def test_everything_listed_can_be_rolled_back_to(machine: Machine) -> None:
    for release, bundle in (("a", "m"), ("b", "n"), ("b", "o"), ("b", "p"), ("b", "q")):
        machine.deploy(release, bundle)

    listed = machine.run("list").stdout.splitlines()

    assert [line.split(" ", 1)[1] for line in listed] == [
        "release b with bundle q, which serves",
        "release b with bundle p",
        "release b with bundle o",
        "release a with bundle m",
    ]
    assert machine.rollback("a").returncode == 0
    assert machine.names("var/lib/model-server/bundles") == {"m", "o", "p", "q"}


def test_what_never_served_is_removed_by_the_next_that_does(machine: Machine) -> None:
    machine.deploy("a", "m")
    machine.deploy("b", "bad")
    (machine.root / "var/lib/model-server/bundles/n.partial").mkdir()
    assert "b" in machine.names("opt/model-server/releases"), "removed before another one served"

    machine.deploy("c", "m")

    assert machine.names("opt/model-server/releases") == {"a", "c"}
    assert machine.names("var/lib/model-server/bundles") == {"m"}


def test_bundle_that_a_shadow_has_is_kept(machine: Machine) -> None:
    machine.deploy("a", "m")
    machine.lay_out("a", "next")
    (machine.root / "var/lib/model-server/shadow").symlink_to("/var/lib/model-server/bundles/next")

    machine.deploy("b", "m")

    assert machine.names("var/lib/model-server/bundles") == {"m", "next"}


def test_end_of_the_play_does_not_end_a_roll_over(machine: Machine) -> None:
    machine.deploy("a", "m")
    (machine.root / "bin/systemctl").write_text(SYSTEMCTL.replace("cd ", "kill -HUP $PPID; kill -TERM $PPID; cd "))

    assert machine.deploy("b", "m").returncode == 0

    assert machine.served[-1] == "b m settings 1"


def test_a_killed_runs_files_are_not_taken_for_the_serving_ones(machine: Machine) -> None:
    machine.deploy("a", "m")
    before = machine.texts()
    machine.lay_out("b", "bad", settings="2")
    (machine.root / "bin/systemctl").write_text(SYSTEMCTL.replace("reload)", "reload) kill -KILL $PPID; exit 1"))
    assert machine.run("apply").returncode == -signal.SIGKILL
    assert machine.texts() != before
    (machine.root / "bin/systemctl").write_text(SYSTEMCTL)

    result = machine.run("apply")

    assert result.stderr.endswith("What served before keeps serving: release a with bundle m.\n")
    assert machine.texts() == before


def test_new_unit_of_a_killed_run_is_started_by_the_next(machine: Machine) -> None:
    machine.deploy("a", "m")
    machine.lay_out("b", "m", unit="other")
    (machine.root / "bin/systemctl").write_text(SYSTEMCTL.replace("reload)", "reload) kill -KILL $PPID; exit 1"))
    machine.run("apply")
    (machine.root / "bin/systemctl").write_text(SYSTEMCTL)
    (machine.root / "log").unlink()

    assert machine.run("apply").returncode == 0

    assert machine.told() == ["daemon-reload", "reload", "restart"]


def test_units_that_systemd_rejects_are_not_started(machine: Machine) -> None:
    machine.deploy("a", "m")
    before = machine.texts()
    (machine.root / "bin/systemd-analyze").write_text(
        "#!/bin/sh\necho 'model-server.service:7: Bad time' >&2; exit 1\n"
    )
    (machine.root / "log").unlink()

    result = machine.deploy("b", "m", unit="other")

    assert result.stderr == (
        "The deployment of release b with bundle m failed:\n"
        f"systemd rejects the units of {machine.root}/etc/model-server/next:\nmodel-server.service:7: Bad time\n"
        "What served before keeps serving: release a with bundle m.\n"
    )
    assert set(machine.told()) == {"daemon-reload"}, "the service was touched"
    assert machine.texts() == before


def test_bundle_that_was_put_on_the_host_is_served_with_the_release_and_settings_that_serve(machine: Machine) -> None:
    machine.deploy("a", "m", settings="2")
    (machine.root / "var/lib/model-server/bundles/n").mkdir()

    result = machine.run("serve", "n")

    assert (result.returncode, result.stdout) == (0, "release a with bundle n serves.\n")
    assert machine.told()[-1] == "reload"
    assert machine.served[-1] == "a n settings 2"
    assert machine.rollback().stdout.startswith("release a with bundle n served; release a with bundle m serves now")


def test_bundle_that_serves_is_loaded_again(machine: Machine) -> None:
    machine.deploy("a", "m")
    machine.run("serve", "m")

    assert machine.told()[-1] == "reload"
    assert machine.served == ["a m settings 1", "a m settings 1"]


def test_bundle_that_is_not_there_or_does_not_load_is_not_served(machine: Machine) -> None:
    nothing = machine.run("serve", "m")
    machine.deploy("a", "m")
    (machine.root / "var/lib/model-server/bundles/bad").mkdir()
    before = machine.texts()

    assert nothing.stderr == "Nothing has been deployed on this host yet; run site.yml.\n"
    assert machine.run("serve", "n").stderr == "On this host release a with bundle n is not complete.\n"
    assert FAILURE in machine.run("serve", "bad").stderr
    assert machine.texts() == before


def test_drained_server_is_put_back_into_service(machine: Machine) -> None:
    machine.deploy("a", "m")
    drained = machine.root / "run/model-server/drained"

    assert machine.run("drain").stdout.startswith("The server is drained: /readyz answers 503,")
    assert drained.exists()
    assert machine.run("drain").returncode == 0
    assert machine.run("resume").stdout == "The server is in service again.\n"
    assert not drained.exists()
    assert machine.run("resume").stdout == "The server was not drained; nothing was changed.\n"


def test_server_is_drained_while_it_changes_and_put_back_even_if_it_fails(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.deploy("a", "m")
    drained = machine.root / "run/model-server/drained"
    looks = f"[ -e {drained} ] && echo drained >>log || echo serving >>log"
    program = machine.root / "bin" / "systemctl"
    program.write_text(program.read_text().replace("  restart | reload)", f"  restart | reload)\n    {looks}"))
    monkeypatch.setenv("MODEL_SERVER_DRAIN_SECONDS", "1")

    assert machine.deploy("b", "m").returncode == 0
    assert machine.deploy("b", "bad").returncode == 1
    assert not drained.exists()
    assert (machine.root / "log").read_text().split().count("drained") >= 2

    drained.touch()  # by somebody who works on the server
    assert machine.deploy("c", "m").returncode == 0
    assert drained.exists()


def test_server_that_does_not_run_is_not_drained(machine: Machine) -> None:
    result = machine.run("drain")

    assert (result.returncode, result.stdout) == (1, "")
    assert "The model server does not run on this host; there is nothing to drain." in result.stderr


def test_is_made_only_of_what_python_3_8_knows() -> None:
    ast.parse(PROGRAM.read_text(), feature_version=(3, 8))


def test_deployment_whose_program_was_killed_is_recorded_by_the_next(machine: Machine) -> None:
    machine.deploy("a", "m")
    machine.deploy("b", "m")
    history = machine.root / "var/lib/model-server/deployments"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]) + "2026-11-22T1")

    machine.deploy("c", "m")
    machine.rollback()

    assert machine.served[-1] == "b m settings 1"
