"""`model-server feedback`: sends the true classes of predictions, from a CSV file, to a server."""

import argparse
import http.client
import json
import ssl
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Tuple
from urllib.parse import urlsplit

from model_server.commands import CommandError
from model_server.commands.labels import read_labels

COLUMNS = ("id", "label")
COUNTED, USED, OVERLOADED = 200, 409, 503
ATTEMPTS, PAUSE_SECONDS = 5, 1.0  # at a server that does not answer or is overloaded
TIMEOUT_SECONDS = 30


def add_feedback(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `model-server feedback` to the commands."""
    parser = commands.add_parser(
        "feedback",
        help="tell a server the true classes of its predictions",
        description="Send the true classes of predictions to a server, which counts them. Rows that it has counted "
        "before are told apart, so that the command can be run again after an interruption.",
    )
    parser.set_defaults(run=send_feedback, prefix="feedback")
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE.csv",
        help="rows of id and label, below a line that names them; those without a label are left out",
    )
    parser.add_argument("--url", required=True, help="of the server or its front door, like https://server")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file with NAME.SECRET, where a key is needed"
    )
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="certificate to trust, beside those of the system")


def send_feedback(options: argparse.Namespace) -> None:
    """Send each row, and tell what became of them.

    Raises:
        CommandError: the file cannot be read, the server cannot be reached, or it did not count a row.
    """
    server = _Server(options)
    outcomes: Dict[str, int] = Counter()
    for row, told in read_labels(options.file, COLUMNS):
        if not told["label"]:  # nobody has looked at that one
            outcomes["left"] += 1
            continue
        status, answer = server.tell(row, told["id"], told["label"])
        if status == COUNTED:
            outcomes["right" if answer["correct"] else "wrong"] += 1
        elif status == USED:
            outcomes["used"] += 1
        else:
            outcomes["refused"] += 1
            _say(f"row {row} was refused ({status}): {answer.get('detail', answer)}")
        if row % 1000 == 0:
            _say(f"{row} rows sent")
    counted = outcomes["right"] + outcomes["wrong"]
    share = f", {outcomes['right'] / counted:.1%} of them right" if counted else ""
    left = f"; {outcomes['left']} have no label" if outcomes["left"] else ""
    _say(f"{counted} counted{share}; {outcomes['used']} had been counted before; {outcomes['refused']} refused{left}")
    if outcomes["refused"]:
        raise CommandError(
            f"{outcomes['refused']} of the rows of {options.file} were refused; the lines above say why."
        )


class _Server:
    """Sends feedback over one connection, which it opens again when it is lost."""

    def __init__(self, options: argparse.Namespace) -> None:
        url = urlsplit(options.url)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise CommandError(f"--url is {options.url}; it must be like https://server or http://server:8000.")
        self._url, self._path = options.url, url.path.rstrip("/") + "/feedback"
        self._headers = {"Content-Type": "application/json"}
        context = ssl.create_default_context()
        if options.api_key_file:
            key: str = _use(options.api_key_file, lambda file: file.read_text(encoding="utf-8"))
            self._headers["X-API-Key"] = key.strip()
        if options.ca_file:
            _use(options.ca_file, context.load_verify_locations)
        self._connection: http.client.HTTPConnection
        if url.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                url.hostname, url.port, timeout=TIMEOUT_SECONDS, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(url.hostname, url.port, timeout=TIMEOUT_SECONDS)

    def tell(self, row: int, prediction_id: str, label: str) -> Tuple[int, Dict[str, Any]]:
        """Return status and answer of a row."""
        body = json.dumps({"id": prediction_id, "label": label})
        problem = ""
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE_SECONDS * attempt)
            try:
                self._connection.request("POST", self._path, body, self._headers)
                response = self._connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                problem = str(error) or type(error).__name__
                if isinstance(error, ssl.SSLCertVerificationError):
                    break
                continue
            if response.status != OVERLOADED:
                return response.status, _parse(content)
            problem = "it is overloaded"
        raise CommandError(f"{self._url} did not take row {row}: {problem}; run the same command again later.")


def _use(file: Path, take: Callable[[Path], Any]) -> Any:
    try:
        return take(file)
    except OSError as error:  # also of a file that holds no certificate
        raise CommandError(f"{file} cannot be used: {error.strerror}.") from error


def _parse(content: bytes) -> Dict[str, Any]:
    """Return an answer; one that is no JSON, of a proxy perhaps, as its sentence."""
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"detail": content[:100].decode("latin-1")}


def _say(line: str) -> None:
    print(f"feedback: {line}", flush=True)  # noqa: T201 - a command's progress
