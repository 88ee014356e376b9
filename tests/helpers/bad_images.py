"""A folder with one usable image."""

import struct
import zlib
from pathlib import Path

from PIL import Image

from hybrid_tokenizer.data.samples import sample_photographs


def write_bad_folder(root: Path) -> Path:
    """A good image, nested, among four that cannot be used."""
    (root / "nested").mkdir(parents=True)
    sample_photographs()["coffee"].save(root / "nested" / "good.jpg")
    data = (root / "nested" / "good.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (root / "text.png").write_text("no image")
    Image.new("RGB", (1, 1)).save(root / "one.png")

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    (root / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    )
    return root
