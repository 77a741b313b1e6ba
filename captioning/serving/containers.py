"""Where JPEG, PNG and WebP keep EXIF, XMP and IPTC: blocks are taken out and put in, every other byte stays as it is."""

import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from captioning.errors import UserError

Blocks = Mapping[str, bytes]  # of "exif", "xmp", "iptc": the block alone, without what its container writes before it
MAX_SEGMENT = 0xFFFF - 2  # bytes of a JPEG's segment: its length takes two of them
MAX_XMP = 1 << 24  # a compressed one may say little and be long
PNG = b"\x89PNG\r\n\x1a\n"
MARKERS = {bytes([number]) for number in (*range(0xC0, 0xD0), *range(0xDB, 0xFF))}  # of segments with a length
JPEG_HEADS = {"exif": (0xE1, b"Exif\0\0"), "xmp": (0xE1, b"http://ns.adobe.com/xap/1.0/\0"), "iptc": (0xED, b"Photoshop 3.0\0")}
PNG_PROFILES = {  # where ImageMagick has put them since before there was a place: hexadecimal digits in a text
    "exif": (b"raw profile type exif", b"raw profile type app1"),
    "xmp": (b"raw profile type xmp", b"raw profile type app1"),
}
XMP_KEYWORD = b"XML:com.adobe.xmp\0"
WEBP_PLACES = {"exif": (b"EXIF", 0x08), "xmp": (b"XMP ", 0x04)}  # chunk, flag in VP8X


class Container(NamedTuple):
    name: str
    kinds: tuple[str, ...]  # that the standard has a place for
    read: Callable[[bytes, Collection[str]], Blocks]  # of these kinds alone: damage elsewhere is no matter
    write: Callable[[bytes, Blocks], bytes]  # with these blocks, others as they are


def container_of(content: bytes) -> Container | None:
    """By its first bytes: names lie."""
    if content.startswith(b"\xff\xd8\xff"):
        return Container("JPEG", ("exif", "xmp", "iptc"), jpeg_blocks, jpeg_with)
    if content.startswith(PNG):
        return Container("PNG", ("exif", "xmp"), png_blocks, png_with)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return Container("WebP", ("exif", "xmp"), webp_blocks, webp_with)
    return None


# JPEG: ITU T.81, annex B; EXIF 2.32, 4.7; XMP part 3, 1.1.3.


def jpeg_segments(content: bytes) -> tuple[list[bytes], bytes]:
    """The segments before the pixels, FF and marker first, and the rest."""
    segments, place = [], 2
    while content[place + 1 : place + 2] != b"\xda":
        size, has_size = int.from_bytes(content[place + 2 : place + 4]), content[place + 1 : place + 2] in MARKERS
        if content[place : place + 1] != b"\xff" or not has_size or size < 2 or place + 2 + size > len(content):
            raise UserError("its segments cannot be told apart")
        segments.append(content[place : place + 2 + size])
        place += 2 + size
    return segments, content[place:]


def jpeg_kind(segment: bytes) -> str | None:
    return next((kind for kind, (marker, head) in JPEG_HEADS.items() if segment[1] == marker and segment.startswith(head, 4)), None)


def jpeg_blocks(content: bytes, kinds: Collection[str]) -> Blocks:
    found = {}
    for segment in jpeg_segments(content)[0]:
        if (kind := jpeg_kind(segment)) and kind in kinds:
            if kind in found:
                raise UserError(f"its {kind.upper()} block is in several parts")
            found[kind] = segment[4 + len(JPEG_HEADS[kind][1]) :]
    return found


def jpeg_with(content: bytes, blocks: Blocks) -> bytes:
    segments, pixels = jpeg_segments(content)
    first = next((number for number, segment in enumerate(segments) if segment.startswith(b"MPF\0", 4)), len(segments))
    for kind, block in blocks.items():
        marker, head = JPEG_HEADS[kind]
        if len(head) + len(block) > MAX_SEGMENT:
            raise UserError(f"its {kind.upper()} block would be larger than the 64 kB that JPEG takes")
        new = struct.pack(">BBH", 0xFF, marker, 2 + len(head) + len(block)) + head + block
        place = next((number for number, segment in enumerate(segments) if jpeg_kind(segment) == kind), None)
        if place is None:  # EXIF comes first but for JFIF's own, then XMP, then IPTC
            lead = (0xE0,) if kind == "exif" else (0xE0, 0xE1)
            place = next((number for number, segment in enumerate(segments) if segment[1] not in lead), len(segments))
            segments.insert(place, new)
            first += 1
        elif place > first:  # further pictures are found by their distance from there
            raise UserError(f"it holds several pictures, and its {kind.upper()} block cannot grow without losing them")
        else:
            segments[place] = new
    return content[:2] + b"".join(segments) + pixels


# PNG: third edition, 11.3.3.4 (iTXt) and 11.3.4.5 (eXIf); XMP part 3, 1.1.5.


def png_chunks(content: bytes) -> tuple[list[bytes], bytes]:
    """The chunks with length, name and checksum, and what follows the last."""
    chunks, place = [], len(PNG)
    while not chunks or chunks[-1][4:8] != b"IEND":
        end = place + 12 + int.from_bytes(content[place : place + 4])
        if len(content) < max(end, place + 12):
            raise UserError("its chunks cannot be told apart")
        chunks.append(content[place:end])
        place = end
    return chunks, content[place:]


def png_kind(chunk: bytes) -> str | None:
    if chunk[4:8] == b"eXIf":
        return "exif"
    return "xmp" if chunk[4:8] == b"iTXt" and chunk.startswith(XMP_KEYWORD, 8) else None


def png_blocks(content: bytes, kinds: Collection[str]) -> Blocks:
    found, chunks = {}, png_chunks(content)[0]
    for chunk in chunks:
        if (kind := png_kind(chunk)) and kind in kinds:
            if kind in found:
                raise UserError(f"it has two {kind.upper()} blocks")
            found[kind] = chunk[8:-4] if kind == "exif" else png_text(chunk[8 + len(XMP_KEYWORD) : -4])
    for kind in (kind for kind in PNG_PROFILES if kind in kinds and kind not in found):
        if any(is_png_profile(chunk, PNG_PROFILES[kind]) for chunk in chunks):
            raise UserError(f"its {kind.upper()} block is in a text chunk, and one of its own would hide it")
    return found


def is_png_profile(chunk: bytes, keywords: Collection[bytes]) -> bool:
    return chunk[4:8] in (b"tEXt", b"zTXt", b"iTXt") and chunk[8:-4].partition(b"\0")[0].lower() in keywords


def png_text(data: bytes) -> bytes:
    parts = data[2:].split(b"\0", 2)  # language, keyword in that language, text
    if len(parts) < 3:
        raise UserError("its XMP packet is damaged")
    if not data[0]:
        return parts[2]
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(parts[2], MAX_XMP)
    except zlib.error:
        raise UserError("its XMP packet is damaged") from None
    if not inflate.eof:
        raise UserError("its XMP packet is damaged")
    return text


def png_with(content: bytes, blocks: Blocks) -> bytes:
    chunks, rest = png_chunks(content)
    for kind, block in blocks.items():
        new = png_chunk(b"eXIf", block) if kind == "exif" else png_chunk(b"iTXt", XMP_KEYWORD + b"\0\0\0\0" + block)
        place = next((number for number, chunk in enumerate(chunks) if png_kind(chunk) == kind), None)
        if place is None:
            chunks.insert(next(number for number, chunk in enumerate(chunks) if chunk[4:8] in (b"IDAT", b"IEND")), new)
        else:
            chunks[place] = new
    return PNG + b"".join(chunks) + rest


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


# WebP: RFC 9649, 2.3 to 2.7.


def webp_chunks(content: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """(name, data) of the chunks, and what follows the file."""
    end, chunks, place = 8 + int.from_bytes(content[4:8], "little"), [], 12
    if end > len(content) + 1:
        raise UserError("its chunks cannot be told apart")
    while place + 8 <= end:
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        if place + 8 + size > len(content):
            raise UserError("its chunks cannot be told apart")
        chunks.append((content[place : place + 4], content[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    return chunks, content[place:]


def webp_blocks(content: bytes, kinds: Collection[str]) -> Blocks:
    chunks = webp_chunks(content)[0]
    found = {kind: next((data for its, data in chunks if its == name), None) for kind, (name, _) in WEBP_PLACES.items()}
    return {kind: data.removeprefix(b"Exif\0\0") for kind, data in found.items() if data is not None and kind in kinds}


def webp_with(content: bytes, blocks: Blocks) -> bytes:
    chunks, rest = webp_chunks(content)
    if not chunks or chunks[0][0] != b"VP8X":
        chunks.insert(0, (b"VP8X", webp_header(*chunks[0] if chunks else (b"", b""))))
    for kind, block in blocks.items():
        name, flag = WEBP_PLACES[kind]
        header = chunks[0][1]
        chunks[0] = (b"VP8X", bytes([header[0] | flag]) + header[1:])
        place = next((number for number, (its, _) in enumerate(chunks) if its == name), len(chunks))
        chunks[place : place + 1] = [(name, block)]
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WEBP") + body + rest


def webp_header(name: bytes, data: bytes) -> bytes:
    """VP8X for a file that had none: the size of its only picture, and whether it is transparent."""
    if name == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        (width, height), alpha = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 6)), 0
    elif name == b"VP8L" and data[:1] == b"\x2f" and len(data) >= 5:
        bits = int.from_bytes(data[1:5], "little")
        width, height, alpha = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bits >> 28 & 1
    else:
        raise UserError("its chunks cannot be told apart")
    return bytes([alpha << 4, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
