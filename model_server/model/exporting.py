"""What the engines that take an exported model have in common."""

import contextlib
import importlib
import warnings
from typing import Any, Iterator

import torch

PIXELS, LOGITS = "pixels", "logits"  # names of the input and the output
WITH_PROJECTIONS = "logits_and_projections"  # of an output that has these, too


class EngineError(RuntimeError):
    """A model that an engine cannot serve; the message says why, and is no whole sentence."""


class NotInstalledError(EngineError):
    """The package that an engine or an exporter needs is not there."""


def require(package: str) -> Any:
    """Import a package that only some servers have.

    Raises:
        NotInstalledError: it is not there.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise NotInstalledError(f"{package} is not installed") from error


@contextlib.contextmanager
def exportable() -> Iterator[None]:
    """Trace in silence, without torch's fused attention, which exporters do not know; the numbers are the same.

    Raises:
        EngineError: what is done meanwhile raises, which a user's network or an exporter does in its own way.
    """
    attention: Any = getattr(torch.backends, "mha", None)  # torch before 2.3 has no such switch
    fused = attention is not None and attention.get_fastpath_enabled()
    try:
        if fused:
            attention.set_fastpath_enabled(False)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # traces and deprecations: the logits are compared afterwards
            yield
    except Exception as error:
        raise EngineError(f"torch {torch.__version__} cannot export it: {first_line(error)}") from error
    finally:
        if fused:
            attention.set_fastpath_enabled(True)


def first_line(error: object) -> str:
    """Return what an error says in its first line, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
