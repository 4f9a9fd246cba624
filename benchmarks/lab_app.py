"""The original lab's app, rewritten: a straightforward FastAPI server for this model.

Starlette's form parser, torchvision's transforms, an eager forward pass, an answer validated by a model.
`LAB_WEIGHTS` names the state dict, and `LAB_NETWORK` the network of torchvision that it belongs to, if it is one.
"""

import io
import os
from typing import Dict, List

import torch
from fastapi import FastAPI, HTTPException, UploadFile
from PIL import Image
from prometheus_client import Counter
from pydantic import BaseModel
from safetensors.torch import load_file
from starlette_exporter import PrometheusMiddleware, handle_metrics
from torch import Tensor, nn
from torch.nn import functional
from torchvision import transforms
from torchvision.models import get_model

CLASSES: List[str] = ["apple", "grapes", "lemon"]
NETWORK = os.environ.get("LAB_NETWORK", "")
SIZE = 224 if NETWORK else 150
PREDICTIONS = Counter("predictions", "Predictions by class", ["class"])

torch.set_num_threads(1)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 34 * 34, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


class Prediction(BaseModel):
    filename: str
    content_type: str
    likely_class: str


model = get_model(NETWORK, weights=None, num_classes=len(CLASSES)) if NETWORK else Network()
model.load_state_dict(load_file(os.environ["LAB_WEIGHTS"]))
model.eval()
preprocess = transforms.Compose(
    [
        transforms.Resize(SIZE),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)

app = FastAPI()
app.add_middleware(PrometheusMiddleware, app_name="fastapi", prefix="fastapi", filter_unhandled_paths=True)
app.add_route("/metrics", handle_metrics)


@app.get("/")
async def root() -> Dict[str, str]:
    return {"status": "ok"}


@app.post("/predict")
async def predict(file: UploadFile) -> Prediction:
    content_type = file.content_type or ""
    if content_type.startswith("fake_server_error/"):
        raise HTTPException(500, "Simulated server error.")
    if not content_type.startswith("image/"):
        raise HTTPException(400, f"File '{file.filename}' is not an image.")
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    with torch.no_grad():
        logits = model(preprocess(image).unsqueeze(0))
    likely_class = CLASSES[int(logits.argmax(1))]
    PREDICTIONS.labels(likely_class).inc()
    return Prediction(filename=file.filename or "", content_type=content_type, likely_class=likely_class)
