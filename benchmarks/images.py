"""What the most expensive images cost that are accepted: `script/bench images`.

Each image is made as large as the bounds allow, in all formats, modes and compressions that can be written here, with
noise and without. It is decoded and scaled in a process of its own; the kernel says what that took. Then one worker
decodes the slowest kinds, and what else is asked of it meanwhile is timed.
"""

import io
import threading
import time
from functools import partial
from multiprocessing import get_context
from random import Random
from typing import Any, Callable, Dict, Iterator, List, Tuple, Union

from PIL import Image

from benchmarks.load import Connection, multipart
from benchmarks.servers import ours, running
from model_server.model.image_files import MAX_SCANS, ImageTooLargeError, UnsupportedImageError, count_scans
from model_server.model.preprocessing import Scaling, load, open_image, resize_and_crop
from model_server.settings import Settings

MAX_BODY: int = Settings.model_fields["max_body_bytes"].default
MAX_PIXELS: int = Settings.model_fields["max_image_pixels"].default
CPU_BAR, MEMORY_BAR = 1.5, 300.0  # seconds, MB above an idle process
WAIT_BAR = 0.1  # seconds, of other requests to the same worker
SLOW = ("JPEG 4:4:4", "JPEG progressive", "PNG", "WebP lossless")
SIDES = (7000, 6000, 5400, 4800, 4000, 3000, 2000)  # of squares; the largest that is accepted counts
KINDS: Dict[str, Tuple[str, str, Dict[str, Any]]] = {
    "JPEG": ("RGB", "JPEG", {"quality": 75}),
    "JPEG 4:4:4": ("RGB", "JPEG", {"quality": 75, "subsampling": 0}),
    "JPEG grey": ("L", "JPEG", {"quality": 75}),
    "JPEG CMYK": ("CMYK", "JPEG", {"quality": 75}),
    "JPEG progressive": ("RGB", "JPEG", {"quality": 75, "progressive": True}),
    "JPEG progressive grey": ("L", "JPEG", {"quality": 75, "progressive": True}),
    "JPEG of many scans": ("L", "JPEG", {"quality": 75, "progressive": True}),
    "JPEG with restarts": ("RGB", "JPEG", {"quality": 75, "restart_marker_blocks": 1}),
    "PNG": ("RGB", "PNG", {"compress_level": 1}),
    "PNG grey": ("L", "PNG", {"compress_level": 1}),
    "PNG RGBA": ("RGBA", "PNG", {"compress_level": 1}),
    "PNG palette": ("P", "PNG", {"compress_level": 1}),
    "PNG 1 bit": ("1", "PNG", {}),
    "PNG 16 bit": ("I;16", "PNG", {"compress_level": 1}),
    "WebP": ("RGB", "WEBP", {"quality": 75, "method": 0}),
    "WebP lossless": ("RGB", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
    "WebP RGBA": ("RGBA", "WEBP", {"quality": 75, "method": 0}),
    "GIF": ("P", "GIF", {}),
    "BMP": ("RGB", "BMP", {}),
    "TIFF": ("RGB", "TIFF", {}),
    "TIFF LZW": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "TIFF deflate": ("RGB", "TIFF", {"compression": "tiff_deflate"}),
    "TIFF packbits": ("RGB", "TIFF", {"compression": "packbits"}),
    "TIFF JPEG": ("RGB", "TIFF", {"compression": "jpeg"}),
    "TIFF fax": ("1", "TIFF", {"compression": "group4"}),
    "TIFF CMYK": ("CMYK", "TIFF", {"compression": "tiff_deflate"}),
}


def noise(side: int) -> Image.Image:
    """Return a tile of noise, repeated: the same each time."""
    tile = Image.frombytes("L", (500, 500), Random("noise").getrandbits(8 * 250_000).to_bytes(250_000, "big"))
    picture = Image.new("L", (side, side))
    for left in range(0, side, 500):
        for top in range(0, side, 500):
            picture.paste(tile, (left, top))
    return picture


CONTENTS: Dict[str, Callable[[int], Image.Image]] = {
    "noise": noise,
    "flat": lambda side: Image.new("L", (side, side), 128),
    "gradient": lambda side: Image.linear_gradient("L").resize((side, side)),
}


def largest(kind: str, content: str) -> "Tuple[int, bytes]":
    """Return the side and the file of the largest image of a kind that is accepted."""
    mode, file_format, options = KINDS[kind]
    for side in SIDES:
        picture = CONTENTS[content](side)
        grey = picture.convert("I").point(lambda value: value * 257) if mode == "I;16" else picture
        file = io.BytesIO()
        grey.convert(mode).save(file, file_format, **options)
        data = _with_all_scans(file.getvalue()) if kind == "JPEG of many scans" else file.getvalue()
        if len(data) > MAX_BODY:
            continue
        try:
            open_image(data, MAX_PIXELS)
        except (ImageTooLargeError, UnsupportedImageError):
            continue
        return side, data
    raise RuntimeError(f"No size of {kind} is accepted.")


def _with_all_scans(jpeg: bytes) -> bytes:
    """Repeat the last scan of a progressive JPEG as often as it is accepted."""
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    copies = min(MAX_SCANS - count_scans(jpeg), max(0, MAX_BODY - len(jpeg)) // len(last))
    return jpeg[:-2] + last * copies + jpeg[-2:]


def cost(data: bytes) -> Tuple[float, float]:
    """Decode and scale an image in a new process; return its CPU seconds, and its memory in MB above before."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_decode, (data,))


def _decode(data: bytes) -> Tuple[float, float]:
    idle = memory("VmRSS")
    began = time.process_time()
    resize_and_crop(load(open_image(data, MAX_PIXELS)), Scaling(224))
    return time.process_time() - began, memory("VmHWM") - idle


def memory(field: str, process: Union[int, str] = "self") -> float:
    """Return a field of a process's status in MB: VmRSS is what it has, VmHWM the most that it had."""
    with open(f"/proc/{process}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024 / 1e6


def waits(large: bytes, small: bytes) -> List[float]:
    """Return the seconds that scrapes and a small image take, in turns, while one worker decodes a large image."""
    seconds: List[float] = []
    with running(ours("exact"), small, workers=1) as server:
        sending, other = Connection(server.url), Connection(server.url)
        sender = threading.Thread(target=sending.predict, args=[multipart(large)])
        sender.start()
        while sender.is_alive():
            for ask in (other.scrape, partial(other.predict, multipart(small))):
                asked = time.perf_counter()
                ask()
                seconds.append(time.perf_counter() - asked)
        sender.join()
    return seconds


def measure(small: bytes) -> bool:
    """Print the cost of each image, and return whether none is above the bars; `small` is asked for meanwhile."""
    return all(list(_judged(small)))


def _timed(kind: str, large: bytes, small: bytes) -> bool:
    seconds = waits(large, small)
    met = max(seconds) <= WAIT_BAR
    verdict = "" if met else "ABOVE THE BAR"
    print(
        f"{kind:<22} meanwhile {len(seconds)} other requests: {max(seconds) * 1e3:.0f} ms at most {verdict}", flush=True
    )
    return met


def _judged(small: bytes) -> Iterator[bool]:
    for kind in KINDS:
        for content in CONTENTS:
            side, data = largest(kind, content)
            seconds, megabytes = min(cost(data) for _ in range(2))
            met = seconds <= CPU_BAR and megabytes <= MEMORY_BAR
            file = f"{side}×{side}, {len(data) / 1e6:.1f} MB"
            verdict = "" if met else "ABOVE THE BAR"
            print(f"{kind:<22} {content:<9} {file:<20} {seconds:5.2f} s CPU {megabytes:5.0f} MB {verdict}", flush=True)
            yield met
            if kind in SLOW and content == "noise":
                yield _timed(kind, data, small)
