"""The model of a bundle, for the commands that let it answer."""

from typing import TYPE_CHECKING

from model_server.model.bundle import TORCHSCRIPT, Bundle, BundleError
from model_server.settings import allows_pickle

if TYPE_CHECKING:  # the import of torch takes seconds
    from model_server.model.classifier import Classifier


def load_classifier(bundle: Bundle) -> "Classifier":
    """Load the model of a bundle.

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
    return Classifier(bundle, allows_pickle())


def without_pickle(bundle: Bundle) -> bytes:
    """Return the weights of a bundle that can be served: a state dict as safetensors, TorchScript as it is."""
    if bundle.manifest.architecture == TORCHSCRIPT:
        return bundle.weights
    from model_server.model.loading import load_state, to_safetensors  # noqa: PLC0415 - imports torch

    return to_safetensors(load_state(bundle, allows_pickle()))
