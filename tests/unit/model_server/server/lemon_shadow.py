"""`model-server shadow` around a model that needs no torch, for the tests beside it."""

import os
import sys
from pathlib import Path
from typing import Any, List, Sequence, Tuple

from model_server.commands import shadow
from model_server.commands.cli import main
from tests.unit.model_server.server.lemon import Lemon


class Other(Lemon):
    manifest = Lemon.manifest.model_copy(update={"version": "2.0"})

    def classify_batch(self, images: Sequence[Any]) -> List[Tuple[str, float, Any, Any]]:
        Path(os.environ["MODEL_SERVER_RUNTIME_DIR"], "asked").touch()
        super().classify_batch(images)
        return [(os.environ.get("LEMON_SAYS", "lemon"), 0.8, None, None)]


if __name__ == "__main__":
    vars(shadow).update(read_bundle=lambda path: path, load_classifier=lambda bundle: Other())
    main(["shadow", "--bundle", "next", "--share", sys.argv[1]])
