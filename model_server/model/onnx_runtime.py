"""Everything that is used of ONNX Runtime, and of torch's exporter to its format.

Both are imported only where a model is exported or served with them: most servers have neither.
"""

import inspect
import io
from typing import Any

import torch
from torch import Tensor, nn

from model_server.model.exporting import LOGITS, PIXELS, EngineError, exportable, first_line, require

# The release of the operators that a file is written for: ONNX Runtime 1.19, the last for Python 3.8, knows it.
OPSET = 17


class OnnxNetwork:
    """A network that ONNX Runtime runs, called like one of torch; `output` is the name of what it answers.

    It has no thread of its own: with one thread, the caller's does the work. So the workers inherit it by fork, and
    share its weights.
    """

    def __init__(self, onnx: bytes) -> None:
        """Load an ONNX file.

        Raises:
            EngineError: onnxruntime is not installed, or cannot load the file.
        """
        onnxruntime = require("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; it warns of processors that it does not know
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes of errors are private
            raise EngineError(f"onnxruntime {onnxruntime.__version__} cannot load it: {first_line(error)}") from error
        self.output: str = self._session.get_outputs()[0].name

    def __call__(self, pixels: Tensor) -> Tensor:
        (outputs,) = self._session.run([self.output], {PIXELS: pixels.contiguous().numpy()})
        return torch.from_numpy(outputs)


def export(model: nn.Module, example: Tensor, output: str = LOGITS) -> bytes:
    """Return a model as an ONNX file, for any number of images of the shape of `example`; `output` names its answer.

    Raises:
        EngineError: the package onnx is not installed, or the exporter cannot translate the model.
    """
    file = io.BytesIO()
    axes = {PIXELS: {0: "images"}, output: {0: "images"}}
    names: Any = {"input_names": [PIXELS], "output_names": [output]}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:  # the other exporter needs one package more
        names["dynamo"] = False
    with exportable():
        torch.onnx.export(model, (example,), file, opset_version=OPSET, dynamic_axes=axes, **names)
    return file.getvalue()
