"""The model of a bundle, for the commands that let it answer."""

from typing import TYPE_CHECKING

from model_server.model.bundle import Bundle, BundleError

if TYPE_CHECKING:  # the import of torch takes seconds
    from model_server.model.classifier import Classifier


def load_classifier(bundle: Bundle) -> "Classifier":
    """Load the model of a bundle.

    Raises:
        BundleError: the bundle cannot be served, or there is no torch.
    """
    try:
        from model_server.model.classifier import Classifier  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BundleError("PyTorch is not installed in this Python environment.") from error
    return Classifier(bundle)
