"""What clients can ask about the model: /model, and the metadata of the Open Inference Protocol below /v2."""

from typing import Any, Callable, Dict, List, Tuple, Union

from fastapi import FastAPI, Request
from pydantic import BaseModel

from model_server.model.bundle import Manifest


class ModelInput(BaseModel):
    """The square that the model sees, and what an image is scaled to before it is cut out.

    Mean and standard deviation are of pixels scaled to 0..1, by channel.
    """

    size: int
    resize: Union[int, Tuple[int, int]]
    interpolation: str
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]


class ModelName(BaseModel):
    """The model that answered; `digest` is the SHA-256 of its weights."""

    name: str
    version: str
    digest: str


class Model(ModelName):
    """The model that answers; `digest` is the SHA-256 of its weights, `classes` are in the order of its outputs."""

    architecture: str
    input: ModelInput
    classes: List[str]


def name_of(manifest: Manifest) -> Dict[str, str]:
    """Return the fields of `ModelName`."""
    return {"name": manifest.name, "version": manifest.version, "digest": manifest.weights_sha256}


def add_model_routes(app: FastAPI, manifest: Manifest, authorize: Callable[[Request], None]) -> None:
    """Add the routes; `authorize` raises for a request that lacks a key."""
    described = Model(
        **name_of(manifest),
        architecture=manifest.architecture,
        input=ModelInput(
            size=manifest.input_size,
            resize=manifest.resize or manifest.input_size,
            interpolation=manifest.interpolation,
            mean=manifest.mean,
            std=manifest.std,
        ),
        classes=list(manifest.classes),
    )
    metadata: Dict[str, Any] = {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": f"pytorch_{manifest.architecture}",
        "inputs": [{"name": "file", "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": "likely_class", "datatype": "BYTES", "shape": [1]}],
    }

    @app.get("/model")
    async def model(request: Request) -> Model:
        """Describe the model: what it sees, and the classes that it knows."""
        authorize(request)
        return described

    @app.get(f"/v2/models/{manifest.name}")
    async def v2_model(request: Request) -> Dict[str, Any]:
        """Describe the model as the Open Inference Protocol does."""
        authorize(request)
        return metadata
