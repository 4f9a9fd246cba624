"""Images in files and directories, for the commands that show them to a model."""

from pathlib import Path
from typing import Callable, Iterator, List, Sequence, Set

from PIL import Image

from model_server.commands import CommandError
from model_server.commands.labels import read_labels
from model_server.model.bundle import Manifest
from model_server.model.image_files import ImageTooLargeError, UndecodableImageError, UnsupportedImageError
from model_server.model.preprocessing import decode, decoding_of
from model_server.settings import Settings

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TABLE = ".csv"  # suffix of a table of labels
CONTACT_SHEET = "contact-sheet.png"  # of the images beside it, and none of them
MAX_PIXELS: int = Settings.model_fields["max_image_pixels"].default


def find_images(places: Sequence[Path]) -> List[Path]:
    """Return the files named, and the images anywhere below the directories named: each once, in a fixed order.

    A table of labels (`*.csv` with the columns `file` and `label`) stands for the files of its rows that have a label.

    Raises:
        CommandError: there is nothing at one of the places, no image below it, or no label in it.
    """
    found: Set[Path] = set()
    for place in places:
        if not place.exists():
            raise CommandError(f"{place} does not exist.")
        files = [place]
        if place.is_dir():
            files = [path for path in place.rglob("*") if _is_image(path)]
        elif place.suffix.lower() == TABLE:
            rows = read_labels(place, ("file", "label"))
            files = [place.parent / row["file"] for _, row in rows if row["label"] and row["file"]]
            if not files:
                raise CommandError(f"{place} has no row with a label; fill in the true class of the images to be used.")
        if not files:
            raise CommandError(f"{place} has no image ({', '.join('*' + suffix for suffix in SUFFIXES)}).")
        found.update(path.resolve() for path in files)
    return sorted(found)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name != CONTACT_SHEET and path.is_file()


def read_images(paths: Sequence[Path], manifest: Manifest, say: Callable[[str], None]) -> Iterator[Image.Image]:
    """Decode the images one by one, exactly, for a model.

    `say` gets a line for each that is left out, and one for each hundred.
    """
    decoding = decoding_of(manifest, "exact")
    for number, path in enumerate(paths, 1):
        try:
            image = decode(path.read_bytes(), MAX_PIXELS, decoding)
        except ImageTooLargeError as error:
            say(f"left out, because it is too large ({error}): {path}")
        except UnsupportedImageError as error:
            say(f"left out, because it is {error}: {path}")
        except UndecodableImageError:
            say(f"left out, because it cannot be decoded as an image: {path}")
        except OSError as error:
            say(f"left out, because it cannot be read ({error.strerror}): {path}")
        else:
            yield image
        if number % 100 == 0:
            say(f"{number} of {len(paths)} images")
