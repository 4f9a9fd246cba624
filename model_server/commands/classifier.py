"""The model of a bundle, for the commands that let it answer."""

from typing import TYPE_CHECKING

from model_server.commands import CommandError
from model_server.model.bundle import TORCHSCRIPT, Bundle, BundleError
from model_server.settings import read_weights_settings

if TYPE_CHECKING:  # the import of torch takes seconds
    from model_server.model.classifier import Classifier


def load_classifier(bundle: Bundle, engine: str = "") -> "Classifier":
    """Load the model of a bundle.

    Args:
        bundle: that has it.
        engine: what is to run it; empty: what the setting says, or the bundle.

    Raises:
        BundleError: the bundle cannot be served, or there is no torch.
        SettingsError: a `MODEL_SERVER_*` variable is wrong.
    """
    try:
        from model_server.model.classifier import Classifier  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BundleError("PyTorch is not installed in this Python environment.") from error
    settings = read_weights_settings()
    return Classifier(bundle, settings.allow_pickle, engine or settings.engine)


def export(bundle: Bundle, engine: str) -> bytes:
    """Return the model of a bundle as the file of an engine other than torch.

    Raises:
        CommandError: it cannot be exported.
    """
    from model_server.model.exporting import EngineError  # noqa: PLC0415 - imports torch, as does the next
    from model_server.model.loading import export_model  # noqa: PLC0415

    try:
        return export_model(bundle, engine, read_weights_settings().allow_pickle)
    except EngineError as error:
        raise CommandError(f"{bundle.manifest.architecture} cannot be served by {engine}: {error}.") from error


def without_pickle(bundle: Bundle) -> bytes:
    """Return the weights of a bundle that can be served: a state dict as safetensors, TorchScript as it is."""
    if bundle.manifest.architecture == TORCHSCRIPT:
        return bundle.weights
    from model_server.model.loading import load_state, to_safetensors  # noqa: PLC0415 - imports torch

    return to_safetensors(load_state(bundle, read_weights_settings().allow_pickle))
