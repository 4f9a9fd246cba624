"""`model-server samples`: packs the images that the server has kept, so that people can look at them and label them."""

import argparse
import contextlib
import csv
import io
import os
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import IO, Iterator, List

from model_server.commands import CommandError
from model_server.commands.contact_sheet import draw_sheet
from model_server.commands.images import CONTACT_SHEET
from model_server.metrics.samples import SampleReason
from model_server.server.ring import Sample, read_ring

TABLE = "labels.csv"
COLUMNS = ("id", "label", "likely_class", "confidence", "reason", "file")
STANDARD_OUTPUT = "-"


def add_samples(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `model-server samples` to the commands."""
    parser = commands.add_parser(
        "samples",
        help="pack the images that the server has kept; playbooks/samples.yml runs it",
        description="Pack the images that the server has kept into a tar file: a folder for each reason, with what "
        f"was answered as JSON beside each image; {CONTACT_SHEET}, one picture of the newest; and {TABLE}, in which "
        "you fill in the true classes for `model-server feedback` and `model-server reference`.",
    )
    parser.set_defaults(run=pack_samples, prefix="samples")
    parser.add_argument("directory", type=Path, metavar="DIR", help="of the samples: MODEL_SERVER_SAMPLES_DIRECTORY")
    parser.add_argument(
        "--out", required=True, metavar="FILE.tar", help="the file to write, in place of an older one; - for stdout"
    )


def pack_samples(options: argparse.Namespace) -> None:
    """Write the tar file.

    Raises:
        CommandError: there are no samples, or it cannot be written; an older file is still there.
    """
    try:
        samples = read_ring(options.directory)
    except OSError as error:
        raise CommandError(f"{options.directory} cannot be read: {error.strerror}.") from error
    if not samples:
        raise CommandError(f"{options.directory} has no samples; the server keeps them there when it is told to.")
    try:
        with _opened(options.out) as file, tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            packed = [sample for sample in samples if _add_sample(tar, sample)]
            _add(tar, TABLE, _table(packed))
            sheet = io.BytesIO()
            draw_sheet(packed).save(sheet, "PNG")
            _add(tar, CONTACT_SHEET, sheet.getvalue())
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"{options.out} cannot be written: {error.strerror or error}.") from error
    counts = Counter(sample.reason for sample in packed)
    told = ", ".join(f"{counts[reason]} {reason.value}" for reason in SampleReason)
    print(f"samples: {told}", file=sys.stderr)  # noqa: T201 - a command's result; standard output may be the tar file


@contextlib.contextmanager
def _opened(out: str) -> Iterator[IO[bytes]]:
    """Open the file for its owner alone; it is in its place when it is whole."""
    if out == STANDARD_OUTPUT:
        yield sys.stdout.buffer
        return
    path = Path(out)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(os.open(str(partial), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        raise


def _add_sample(tar: tarfile.TarFile, sample: Sample) -> bool:
    """Add the files of a sample, and return whether they were still there: the server goes on meanwhile."""
    try:
        image = sample.image.read_bytes()
        described = sample.image.with_suffix(".json").read_bytes()
    except FileNotFoundError:
        return False
    _add(tar, f"{sample.reason.value}/{sample.image.name}", image)
    _add(tar, f"{sample.reason.value}/{sample.name}.json", described)
    return True


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o600
    tar.addfile(member, io.BytesIO(content))


def _table(samples: List[Sample]) -> bytes:
    """Write the table of what can be labelled: a line for each sample that has a class."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for sample in samples:
        if sample.reason is not SampleReason.REJECTED:
            told = [sample.answer.get(name) for name in ("prediction_id", "class", "confidence")]
            file = f"{sample.reason.value}/{sample.image.name}"
            writer.writerow([told[0], "", *told[1:], sample.reason.value, file])
    return text.getvalue().encode()
