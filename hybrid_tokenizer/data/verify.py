"""Damage that decoders pass over: interrupted downloads, preallocated files, holes of zeros, images closed early.

A decoder fills in what is missing, and a photograph that is grey or smeared for the most part counts as read. What a file
itself tells is checked here:

    cheap   lengths and end marks of PNG, WebP and AVIF; scans of a JPEG that never come; runs of zeros that are longer than
            coded data ever has; a picture that stops in the middle of a row
    full    also the checksums of a PNG and a deflated TIFF, and a JPEG's coded data from the first bit to the last by libjpeg

What cannot be known: a BMP or TIFF without compression that is black from the start of a row on, since so are pictures with
a black border; changed bits inside the coded data of JPEG, WebP and AVIF, which have no checksum; a colour profile of these that is damaged
and still plausible; with `cheap`, changed bits in a PNG, a hole in a deflated TIFF, and a progressive JPEG that ends early
inside one of its scans.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BufferedIOBase

import numpy as np
from PIL import Image

from hybrid_tokenizer.data.config import Verify

LONGEST_RUN = 64
"""Zero bytes in a row that coded data may have anywhere."""
RUN_PER_FLAT_BLOCK = {"JPEG": 1.5, "WEBP": 0.25}
"""Further zero bytes for each 8x8 block of one colour: measured on empty pictures, 0.75 and 0.18 at most."""
LONGEST_TIFF_RUN = 160
LONGEST_BMP_RUN = 8
MOST_SCANS = 100
"""Of a JPEG; ten are usual. Each is a pass over all pixels, whatever its length."""
FAINT, BRIGHT_SHARE = 16, 0.9
PIECE = 2**20
COMPRESSION, STRIPS, STRIP_LENGTHS, TILES, TILE_LENGTHS = 259, 273, 279, 324, 325  # tags of TIFF
UNCOMPRESSED, WITHOUT_CHECKSUM, DEFLATE = 1, (5, 32773), (8, 32946)  # TIFF: LZW and PackBits decode zeros to pixels
GREY = 128  # what libjpeg gives where data is missing

Check = Callable[[Image.Image], None]


def check_file(file: BufferedIOBase, image: Image.Image, verify: Verify) -> Check:
    """Raise ValueError where the file of a picture that was opened, but not yet decoded, shows damage.

    The check that it returns has to be called with the decoded picture, before that is converted.
    """
    check = CHECKS.get("JPEG" if image.format == "MPO" else str(image.format))
    if verify == "off" or check is None:
        return _no_check
    position = file.tell()
    try:
        return check(file, image, verify == "full")
    finally:
        file.seek(position)


def _no_check(image: Image.Image) -> None:
    """Nothing to see in the pixels."""


def _check_png(file: BufferedIOBase, image: Image.Image, full: bool) -> Check:
    file.seek(8)
    kind = b""
    while kind != b"IEND":
        header = file.read(8)
        if len(header) < 8:
            raise ValueError("the PNG ends before its IEND chunk; it is incomplete")
        length, kind = struct.unpack(">I4s", header)
        if not kind.isalpha():
            raise ValueError("a PNG chunk has no valid name; the file is damaged or incomplete")
        if not full:
            file.seek(length + 4, 1)
        elif _crc(file, kind, length) != file.read(4):
            raise ValueError(f"the checksum of the PNG's {kind.decode()} chunk is wrong; the file is damaged")
    return _no_check


def _crc(file: BufferedIOBase, kind: bytes, length: int) -> bytes:
    digest = zlib.crc32(kind)
    while length > 0 and (piece := file.read(min(length, PIECE))):
        digest = zlib.crc32(piece, digest)
        length -= len(piece)
    return digest.to_bytes(4, "big")


def _check_jpeg(file: BufferedIOBase, image: Image.Image, full: bool) -> Check:
    file.seek(0)
    data = file.read()
    start = _first_scan(data)
    in_one_scan = _has_everything(data, start, len(image.getbands()))
    zeros = data.find(bytes(LONGEST_RUN + 1), start) >= 0
    if in_one_scan and not zeros:
        end = len(data)  # not looked for: nothing below depends on it
    else:
        end = data.find(b"\xff\xd9", start)  # of the first picture
        end = len(data) if end < 0 else end
    if not in_one_scan:
        _check_scans(data, start, end, len(image.getbands()))
    if full and (complaint := _libjpeg_complaint(data, image.mode)):
        raise ValueError(complaint)
    run = _longest_zero_run(data, start, end)

    def check(decoded: Image.Image) -> None:
        if not full and _ends_in_grey(decoded) and (complaint := _libjpeg_complaint(data, decoded.mode)):
            raise ValueError(complaint)
        _check_run(run, decoded, "JPEG")

    return check


def _first_scan(data: bytes) -> int:
    """Where the first scan's marker is; the end where the segments lead nowhere."""
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xDA:
            return position
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # fill bytes, marks without a length
            position += 1 if marker == 0xFF else 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return len(data)


def _has_everything(data: bytes, start: int, components: int) -> bool:
    """Whether the first scan has all components to the last bit, as in every JPEG that is not progressive, as a rule."""
    head = data[start + 4 : start + 8 + 2 * components]
    return len(head) == 4 + 2 * components and head[0] == components and head[-3:] == b"\0\x3f\0"


def _check_scans(data: bytes, start: int, end: int, components: int) -> None:
    """Raise where a coefficient of a component is never sent to its last bit: the file was closed between two scans."""
    missing: dict[int, bytearray] = {}
    """Component -> for each of 64 coefficients the lowest bit that was sent."""
    position, scans = start, 0
    while 0 <= position < end:
        scans += 1
        if scans > MOST_SCANS:
            raise ValueError(f"the JPEG has more than {MOST_SCANS} scans; save it again")
        head = data[position + 4 : position + 8 + 2 * data[position + 4]]
        first, last, bits = head[-3:]
        for component in head[1:-3:2]:
            sent = missing.setdefault(component, bytearray(b"\xff" * 64))
            sent[first : last + 1] = bytes([bits & 15]) * len(sent[first : last + 1])
        position = data.find(b"\xff\xda", position + 2, end)
    if scans and (len(missing) < components or any(map(any, missing.values()))):
        raise ValueError("the JPEG ends before its last scans; it is incomplete")


def _libjpeg_complaint(data: bytes, mode: str) -> str | None:
    """What libjpeg says of damaged coded data, which Pillow does not pass on; None where it is whole.

    At an eighth of the size, since the coded data is read to its end all the same.
    """
    import simplejpeg

    space = {"L": "GRAY", "CMYK": "CMYK"}.get(mode, "RGB")
    try:
        simplejpeg.decode_jpeg(data, space, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        complaint = str(error)
    else:
        return None
    left_over = re.search(r"(\d+) extraneous bytes before marker 0x(?:c4|d[0-9a])", complaint)
    if left_over and int(left_over[1]) > LONGEST_RUN:  # some encoders pad with a few
        return f"the JPEG's coded data does not fit its header ({left_over[1]} bytes are left over); it is damaged"
    if "premature end of data" in complaint:
        return "the JPEG's coded data ends early; it is damaged or incomplete"
    if "Huffman code" in complaint or "Inconsistent progression" in complaint:
        return "the JPEG's coded data holds impossible codes; it is damaged"
    return None


def _ends_in_grey(image: Image.Image) -> bool:
    """Whether the last pixel has the grey that stands for missing data."""
    pixel = image.crop((image.width - 1, image.height - 1, image.width, image.height))
    levels = np.asarray(pixel if image.mode == "CMYK" else pixel.convert("L")).astype(int)
    return bool((np.abs(levels - GREY) <= 2).all())


def _check_webp(file: BufferedIOBase, image: Image.Image, full: bool) -> Check:
    file.seek(0)
    data = file.read()
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise ValueError(f"the WebP has {len(data)} bytes of {end}; it is incomplete")
    run = max((_longest_zero_run(data, *part) for part in _webp_parts(data, 12, end)), default=0)
    return lambda decoded: _check_run(run, decoded, "WEBP")


def _webp_parts(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the coded data of a still picture or of frames lies. Raises where the lengths of chunks do not add up."""
    while start + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, start)
        start += 8
        if not kind.strip().isalnum() or start + length > end:
            raise ValueError("the chunks of the WebP do not fill it; it is damaged or incomplete")
        if kind in (b"VP8 ", b"VP8L"):
            yield start, start + length
        elif kind == b"ANMF":  # sixteen bytes about the frame, and its chunks
            yield from _webp_parts(data, start + 16, start + length)
        start += length + length % 2


def _check_avif(file: BufferedIOBase, image: Image.Image, full: bool) -> Check:
    file.seek(0)
    data = file.read()
    meta = None
    for kind, start, end in _boxes(data, 0, len(data)):
        meta = data[start + 4 : end] if kind == b"meta" else meta
    for start, length in _avif_parts(meta or b""):
        if start + length > len(data):
            raise ValueError(f"the AVIF has {len(data)} bytes of {start + length}; it is incomplete")
        if _longest_zero_run(data, start, start + length):
            raise ValueError("a part of the AVIF's coded data is zeros; it is damaged or incomplete")
    return _no_check


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the contents. Raises where a box is longer than what holds it, or has no name."""
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if length == 1 and start + 16 <= end:
            head, length = 16, int.from_bytes(data[start + 8 : start + 16], "big")
        length = length or end - start
        if length < head or start + length > end or not kind.strip().isalnum():
            raise ValueError("the boxes of the AVIF do not fill it; it is damaged or incomplete")
        yield kind, start + head, start + length
        start += length


def _avif_parts(meta: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length) in the file of the AV1 data of all items, colours and alpha. EXIF and the like may hold zeros."""
    boxes = {kind: meta[start:end] for kind, start, end in _boxes(meta, 0, len(meta))}
    listing, places = boxes.get(b"iinf", b""), boxes.get(b"iloc", b"")
    coded = set()
    for kind, start, end in _boxes(listing, 6 if listing[:1] == b"\0" else 8, len(listing)):
        entry = listing[start:end]
        width = 2 if entry[:1] == b"\x02" else 4
        if kind == b"infe" and entry[6 + width : 10 + width] == b"av01":
            coded.add(int.from_bytes(entry[4 : 4 + width], "big"))
    reader = _Numbers(places)
    version = reader.take(1)
    reader.take(3)
    sizes = reader.take(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    for _ in range(reader.take(4 if version == 2 else 2)):
        item = reader.take(4 if version == 2 else 2)
        in_file = (reader.take(2) & 15) == 0 if version else True
        reader.take(2)
        base = reader.take(base_size)
        for _ in range(reader.take(2)):
            reader.take(index_size if version else 0)
            offset, length = reader.take(offset_size), reader.take(length_size)
            if item in coded and in_file:
                yield base + offset, length


class _Numbers:
    """Big-endian numbers one after the other; zeros past the end."""

    def __init__(self, data: bytes):
        self._data, self._position = data, 0

    def take(self, size: int) -> int:
        start, self._position = self._position, self._position + size
        return int.from_bytes(self._data[start : self._position], "big")


def _check_tiff(file: BufferedIOBase, image: Image.Image, full: bool) -> Check:
    tags = image.tag_v2  # type: ignore[attr-defined]
    compression = tags.get(COMPRESSION, UNCOMPRESSED)
    size, tail = _zero_tail(file)
    if compression == UNCOMPRESSED:
        return _check_rows if tail else _no_check
    for offsets, counts in ((STRIPS, STRIP_LENGTHS), (TILES, TILE_LENGTHS)):
        # a file may list more offsets than lengths; only pairs say where coded data is
        for offset, count in zip(_numbers(tags.get(offsets)), _numbers(tags.get(counts)), strict=False):
            run = min(offset + count, size) - max(offset, size - tail)
            if compression in WITHOUT_CHECKSUM:
                file.seek(offset)
                run = max(run, _longest_zero_run(file.read(count), 0, count))
            if run > LONGEST_TIFF_RUN:
                raise ValueError("a part of the TIFF's coded data is zeros; it is damaged or incomplete")
            if full and compression in DEFLATE:
                file.seek(offset)
                _check_deflate(file.read(count))
    return _no_check


def _check_deflate(data: bytes) -> None:
    """Raise where the checksum at the end of deflated data is wrong. libtiff stops at the last pixel, before it."""
    reader = zlib.decompressobj()
    try:
        while data and not reader.eof:
            reader.decompress(data, PIECE)
            data = reader.unconsumed_tail
    except zlib.error:
        raise ValueError("the checksum of the TIFF's coded data is wrong; it is damaged") from None
    if not reader.eof:
        raise ValueError("the TIFF's coded data has no end; it is incomplete")


def _numbers(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _check_bmp(file: BufferedIOBase, image: Image.Image, full: bool) -> Check:
    _, run = _zero_tail(file)
    if not run:
        return _no_check
    if image.tile[0].codec_name == "bmp_rle":
        raise ValueError("the BMP's coded data ends in zeros; it is damaged or incomplete")
    upside_down = image.tile[0].args[-1] == -1
    return lambda decoded: _check_rows(decoded.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if upside_down else decoded)


def _check_rows(image: Image.Image) -> None:
    """Raise where the picture turns black in the middle of a row and stays so, and the row before is bright there.

    The rows are in the order of the file. A black border begins at the start of a row, and shadows begin gradually.
    """
    box = image.getbbox(alpha_only=False)
    if box is None or box[3] < 2:
        return
    last = box[3] - 1
    before, row = (
        np.asarray(image.crop((0, y, image.width, y + 1)))[0].reshape(image.width, -1) for y in (last - 1, last)
    )
    cut = int(np.flatnonzero(row.any(-1))[-1]) + 1
    missing = before[cut:].max(-1)
    if image.height - last > 1 and len(missing) and (missing > FAINT).mean() > BRIGHT_SHARE:
        raise ValueError(
            f"the picture is black from the middle of row {last + 1} of {image.height} on; it is incomplete"
        )


def _zero_tail(file: BufferedIOBase) -> tuple[int, int]:
    """The file's size, and how many zero bytes it ends in, 0 for a few."""
    position = size = file.seek(0, 2)
    while position:
        start = max(0, position - PIECE)
        file.seek(start)
        rest = file.read(position - start).rstrip(b"\0")
        if rest:
            position = start + len(rest)
            break
        position = start
    run = size - position
    return size, run if run > LONGEST_BMP_RUN else 0


def _longest_zero_run(data: bytes, start: int, end: int) -> int:
    """Of more than `LONGEST_RUN` bytes; 0 where there is none."""
    if data.find(bytes(LONGEST_RUN + 1), start, end) < 0:
        return 0
    return max(map(len, re.findall(rb"\0{%d,}" % (LONGEST_RUN + 1), data[start:end])))


def _check_run(run: int, image: Image.Image, kind: str) -> None:
    """Raise where a run of zeros is longer than the picture's flat parts account for."""
    if run and run > LONGEST_RUN + RUN_PER_FLAT_BLOCK[kind] * _flat_blocks(image):
        raise ValueError(
            f"{run} bytes of the coded data are zeros; the {kind.replace('WEBP', 'WebP')} is damaged or incomplete"
        )


def _flat_blocks(image: Image.Image) -> int:
    """8x8 blocks of one level."""
    width = image.width // 8 * 8
    count = 0
    for top in range(0, image.height - 7, 8):
        levels = np.asarray(image.crop((0, top, width, top + 8)).convert("L")).reshape(8, -1, 8).astype(int)
        count += int((np.ptp(levels, axis=(0, 2)) <= 2).sum())
    return count


CHECKS: dict[str, Callable[[BufferedIOBase, Image.Image, bool], Check]] = {
    "PNG": _check_png,
    "JPEG": _check_jpeg,
    "WEBP": _check_webp,
    "AVIF": _check_avif,
    "TIFF": _check_tiff,
    "BMP": _check_bmp,
}
