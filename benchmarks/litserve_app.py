"""The network of `lab_app` under LitServe, with its batches: `python -m benchmarks.litserve_app`.

As LitServe's documentation has it: a worker process decodes and scales what waits, and stacks it for one forward pass.
`lab_app` holds torch to one thread in each.
"""

import argparse
from typing import Any, Dict

import litserve  # type: ignore[import-not-found]
import torch
from fastapi import Request
from PIL import Image
from torch import Tensor

from benchmarks.lab_app import CLASSES, model, preprocess

MAX_BATCH, BATCH_TIMEOUT = 8, 0.01  # images; seconds that the first one waits for others


class Classifier(litserve.LitAPI):  # type: ignore[misc] # has no types
    def decode_request(self, request: Request) -> Tensor:
        form: Any = request  # which LitServe has read
        scaled: Tensor = preprocess(Image.open(form["file"].file).convert("RGB"))
        return scaled

    def predict(self, batch: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(batch)
        return logits.argmax(1)

    def encode_response(self, index: Tensor) -> Dict[str, str]:
        return {"likely_class": CLASSES[int(index)]}


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="litserve_app", description=__doc__)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--bind", required=True)
    options = parser.parse_args()
    host, _, port = options.bind.rpartition(":")
    api = Classifier(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=options.workers)
    server.run(host=host, port=int(port), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
