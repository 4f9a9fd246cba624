"""Everything that is used of ncnn, and of pnnx, which exports to its format.

ncnn multiplies less in convolutions of 3×3 (Winograd's minimal filtering; Lavin and Gray 2016, arXiv:1509.09308).
Both are imported only where a model is exported or served with them: most servers have neither.
"""

import io
import os
import re
import subprocess
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from model_server.model.exporting import LOGITS, EngineError, exportable, first_line, require

LAYERS, WEIGHTS = "model.ncnn.param", "model.ncnn.bin"  # the two files of a model, in one archive
INPUT, OUTPUT = "in0", "out0"  # as pnnx names them


class NcnnNetwork:
    """A network that ncnn runs, called like one of torch for one image; `output` is the name of what it answers.

    It has no thread of its own: with one thread, the caller's does the work, without Python's lock. So the workers
    inherit it by fork, and share its weights.
    """

    def __init__(self, exported: bytes) -> None:
        """Load what `export` returned.

        Raises:
            EngineError: ncnn is not installed, or cannot load the model.
        """
        self._ncnn = ncnn = require("ncnn")
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = 1
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        options.use_winograd63_convolution = False  # the largest tiles: slower in the networks tried, and less exact
        try:
            with zipfile.ZipFile(io.BytesIO(exported)) as archive:
                layers, weights = archive.read(LAYERS).decode("ascii"), archive.read(WEIGHTS)
        except Exception as error:  # a damaged archive can raise anything
            raise EngineError(f"it is no archive of {LAYERS} and {WEIGHTS}: {first_line(error)}") from error
        if self._net.load_param_mem(layers) != 0 or _load_weights(self._net, weights) != 0:
            raise EngineError(f"ncnn {ncnn.__version__} cannot load it; what it lacks stands above")
        self.output: str = self._net.output_names()[0]

    def __call__(self, pixels: Tensor) -> Tensor:
        (image,) = pixels.contiguous().numpy()
        extractor = self._net.create_extractor()
        # A copy: layers that work in place would look for the owner of numpy's memory.
        extractor.input(INPUT, self._ncnn.Mat(image).clone())
        code, outputs = extractor.extract(self.output)
        if code != 0:
            raise RuntimeError(f"ncnn ends with {code}")
        return torch.frombuffer(outputs, dtype=torch.float32)[None]


def _load_weights(net: object, weights: bytes) -> int:
    """Let ncnn read weights as a file in memory: what it takes from Python directly, it does not keep alive."""
    file = os.memfd_create(WEIGHTS)
    with open(file, "wb") as writer:
        writer.write(weights)
        writer.flush()
        code: int = net.load_model(f"/proc/self/fd/{file}")  # type: ignore[attr-defined]
    return code


def export(model: nn.Module, example: Tensor, output: str = LOGITS) -> bytes:
    """Return a model for ncnn, for one image of the shape of `example`: an archive; `output` names its answer.

    Raises:
        EngineError: pnnx is not installed, or cannot translate the model.
    """
    pnnx = require("pnnx")
    with tempfile.TemporaryDirectory(prefix="model-server-") as name:
        traced = Path(name) / "model.pt"
        with exportable():
            torch.jit.trace(model, example, check_trace=False).save(str(traced))
        shape = ",".join(map(str, example.shape))
        command = [pnnx.EXEC_PATH, traced.name, f"inputshape=[{shape}]", "fp16=0"]
        try:
            done = subprocess.run(command, cwd=name, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # noqa: S603, PLW1510
        except OSError as error:
            raise EngineError(f"{pnnx.EXEC_PATH} cannot be run: {error.strerror}") from error
        layers, weights = traced.with_name(LAYERS), traced.with_name(WEIGHTS)
        if done.returncode != 0 or not weights.exists():
            said = done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
            raise EngineError(f"pnnx ends with {done.returncode}: {first_line(said)}")
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as writer:
            writer.writestr(zipfile.ZipInfo(LAYERS), re.sub(rf"\b{OUTPUT}\b", output, layers.read_text("ascii")))
            writer.writestr(zipfile.ZipInfo(WEIGHTS), weights.read_bytes())
    return archive.getvalue()
