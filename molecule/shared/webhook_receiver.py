"""Stands in for the receiver of notifications: keeps what Alertmanager posts, a JSON object a line.

Run as `python3 webhook_receiver.py PORT FILE`. To each notification it adds `received`, the Unix time of its arrival.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class WebhookReceiver(BaseHTTPRequestHandler):
    file: Path

    def do_POST(self) -> None:
        received = time.time()
        notification = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.file.open("a") as file:
            file.write(json.dumps({"received": received, **notification}) + "\n")
        self.send_response(204)
        self.end_headers()


if __name__ == "__main__":
    WebhookReceiver.file = Path(sys.argv[2])
    HTTPServer(("", int(sys.argv[1])), WebhookReceiver).serve_forever()
