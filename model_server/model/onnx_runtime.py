"""Everything that is used of ONNX Runtime, and of torch's exporter to its format.

Both are imported only where a model is exported or served with them: most servers have neither.
"""

import contextlib
import inspect
import io
import warnings
from typing import Any, Iterator

import torch
from torch import Tensor, nn

# The release of the operators that a file is written for: ONNX Runtime 1.19, the last for Python 3.8, knows it.
OPSET = 17
PIXELS, LOGITS = "pixels", "logits"  # names of the input and the output
WITH_PROJECTIONS = "logits_and_projections"  # of an output that has these, too


class OnnxError(RuntimeError):
    """A model that ONNX Runtime cannot serve; the message says why, and is no whole sentence."""


class OnnxNetwork:
    """A network that ONNX Runtime runs, called like one of torch; `output` is the name of what it answers.

    It has no thread of its own: with one thread, the caller's does the work. So the workers inherit it by fork, and
    share its weights.
    """

    def __init__(self, onnx: bytes) -> None:
        """Load an ONNX file.

        Raises:
            OnnxError: onnxruntime is not installed, or cannot load the file.
        """
        try:
            import onnxruntime  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if error.name != "onnxruntime":
                raise
            raise OnnxError("onnxruntime is not installed") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; it warns of processors that it does not know
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes of errors are private
            raise OnnxError(f"onnxruntime {onnxruntime.__version__} cannot load it: {_first_line(error)}") from error
        self.output: str = self._session.get_outputs()[0].name

    def __call__(self, pixels: Tensor) -> Tensor:
        (outputs,) = self._session.run([self.output], {PIXELS: pixels.contiguous().numpy()})
        return torch.from_numpy(outputs)


def export(model: nn.Module, example: Tensor, output: str = LOGITS) -> bytes:
    """Return a model as an ONNX file, for any number of images of the shape of `example`; `output` names its answer.

    Raises:
        OnnxError: the package onnx is not installed, or the exporter cannot translate the model.
    """
    file = io.BytesIO()
    axes = {PIXELS: {0: "images"}, output: {0: "images"}}
    names: Any = {"input_names": [PIXELS], "output_names": [output]}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:  # the other exporter needs one package more
        names["dynamo"] = False
    try:
        with torch.no_grad(), _exportable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # traces and deprecations: the logits are compared afterwards
            torch.onnx.export(model, (example,), file, opset_version=OPSET, dynamic_axes=axes, **names)
    except Exception as error:  # of a user's network, or of the exporter
        raise OnnxError(f"torch {torch.__version__} cannot export it: {_first_line(error)}") from error
    return file.getvalue()


@contextlib.contextmanager
def _exportable() -> Iterator[None]:
    """Switch torch's fused attention off, which the exporter does not know; the numbers are the same."""
    attention = getattr(torch.backends, "mha", None)  # torch before 2.3 has no such switch
    if attention is None:
        yield
        return
    before = attention.get_fastpath_enabled()
    attention.set_fastpath_enabled(False)
    try:
        yield
    finally:
        attention.set_fastpath_enabled(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
