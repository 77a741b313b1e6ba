"""A description in the three blocks that photographs carry: EXIF, XMP and IPTC. Bytes in, bytes out; what else stands there stays.

Nothing is laid out anew that may be pointed at from elsewhere: camera makers keep notes in EXIF whose offsets only they know.
"""

import struct
from typing import NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from captioning.errors import UserError

IMAGE_DESCRIPTION = 0x010E
RDF, DC = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://purl.org/dc/elements/1.1/"
CORE = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
PROPERTIES = {f"{DC} description": ("dc", DC), f"{CORE} AltTextAccessibility": ("Iptc4xmpCore", CORE)}
IPTC_RESOURCE = 0x0404  # of Photoshop's
CHARACTERS, VERSION, CAPTION = (1, 90), (2, 0), (2, 120)  # data sets of IIM 4.2
UTF_8 = b"\x1b%G"
MAX_CAPTION = 2000  # bytes, says IIM
MAX_PACKET, MAX_DEPTH = 1 << 22, 100  # bytes and elements within each other: a packet of a few kilobytes has ten
MAX_ENTRIES = 0xFFFF  # of a directory


class Exif(NamedTuple):
    """The first directory of a TIFF block (TIFF 6.0, section 2)."""

    block: bytes
    order: str  # of bytes, as `struct` has it
    entries: list[bytes]  # 12 bytes each, the first two the tag
    following: bytes  # the offset of the next directory

    @classmethod
    def read(cls, block: bytes | None) -> "Exif":
        if block is None:
            return cls(b"MM\0*\0\0\0\0", ">", [], b"\0\0\0\0")
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
        try:
            if order is None:
                raise ValueError
            (place,) = struct.unpack_from(f"{order}I", block, 4)
            (count,) = struct.unpack_from(f"{order}H", block, place)
            end = place + 2 + 12 * count
            if len(block) < end + 4 or place < 8:
                raise ValueError
        except (struct.error, ValueError):
            raise UserError("its EXIF block is damaged") from None
        return cls(block, order, [block[start : start + 12] for start in range(place + 2, end, 12)], block[end : end + 4])

    def tag(self, entry: bytes) -> int:
        return struct.unpack_from(f"{self.order}H", entry)[0]

    def description(self) -> str:
        for entry in self.entries:
            if self.tag(entry) == IMAGE_DESCRIPTION:
                count, place = struct.unpack_from(f"{self.order}II", entry, 4)
                text = entry[8 : 8 + count] if count <= 4 else self.block[place : place + count]
                return text.rstrip(b"\0").decode(errors="replace").strip()
        return ""

    def described(self, text: str) -> bytes:
        """The block as it is, and behind it the text and a copy of the first directory that points there: all old offsets hold."""
        content = text.encode() + b"\0"  # the type is called ASCII; readers take UTF-8, which EXIF 3.0 allows by name
        block = self.block + b"\0" * (len(self.block) % 2)
        value = content.ljust(4, b"\0") if len(content) <= 4 else struct.pack(f"{self.order}I", len(block))
        entries = [entry for entry in self.entries if self.tag(entry) != IMAGE_DESCRIPTION]
        if len(entries) == MAX_ENTRIES:
            raise UserError(f"its EXIF block has {MAX_ENTRIES:,} entries and no room for another")
        entries.append(struct.pack(f"{self.order}HHI", IMAGE_DESCRIPTION, 2, len(content)) + value)
        block += content + b"\0" * (len(content) % 2)
        head = block[:4] + struct.pack(f"{self.order}I", len(block))
        directory = struct.pack(f"{self.order}H", len(entries)) + b"".join(sorted(entries, key=self.tag)) + self.following
        return head + block[8:] + directory


class Xmp(NamedTuple):
    """Where the properties of an XMP packet stand in its bytes, so that a change leaves every other byte as it is."""

    packet: bytes
    about: str
    end: int  # where `</rdf:RDF>` begins
    places: dict[str, tuple[int, int]]  # a property's element, from its < to behind its >
    texts: dict[str, str]

    @classmethod
    def read(cls, packet: bytes | None) -> "Xmp":
        if packet is None:
            packet = (
                '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
                f'<rdf:RDF xmlns:rdf="{RDF}">\n</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>'
            ).encode()
        try:
            return scanned(packet.rstrip(b"\0"))
        except (expat.ExpatError, UnicodeDecodeError):
            raise UserError("its XMP packet is damaged") from None

    def described(self, text: str, overwrite: bool) -> tuple[bytes, bool]:
        """The packet, and whether it keeps a description of its own: each of the two properties is judged for itself."""
        chosen = [name for name in PROPERTIES if overwrite or not self.texts.get(name, "").strip()]
        if any(name in self.texts and name not in self.places for name in chosen):
            raise UserError("its XMP packet has the description as an attribute, which the standard has not")
        added = "".join(self.element(name, text) for name in chosen)
        packet = self.packet[: self.end] + added.encode() + self.packet[self.end :]
        for start, end in sorted((self.places[name] for name in chosen if name in self.places), reverse=True):
            packet = packet[:start] + packet[end:]
        try:
            is_right = all(scanned(packet).texts.get(name) == text for name in chosen)
        except (expat.ExpatError, UserError):
            is_right = False
        if not is_right:  # rather no copy than one that nobody can read
            raise UserError("its XMP packet cannot be added to")
        return packet, len(chosen) < len(PROPERTIES)

    def element(self, name: str, text: str) -> str:
        prefix, space = PROPERTIES[name]
        name = f"{prefix}:{name.rpartition(' ')[2]}"
        return (
            f'<rdf:Description xmlns:rdf="{RDF}" rdf:about={quoteattr(self.about)} xmlns:{prefix}="{space}"><{name}><rdf:Alt>'
            f'<rdf:li xml:lang="x-default">{escape(text)}</rdf:li></rdf:Alt></{name}></rdf:Description>\n'
        )


def scanned(packet: bytes) -> Xmp:
    if len(packet) > MAX_PACKET:
        raise UserError(f"its XMP packet is larger than {MAX_PACKET >> 20} MB")
    if b"\0" in packet:
        raise UserError("its XMP packet is not in UTF-8")
    packet.decode()
    parser, path, about = expat.ParserCreate("UTF-8", " "), [], []
    ends, places, begun = [], {}, {}
    texts: dict[str, list[str]] = {}
    within: list[str] = []  # the property that the parser is in, if any
    parser.buffer_text = True

    def begin(name: str, attributes: dict[str, str]) -> None:
        if path[-1:] == [f"{RDF} RDF"] and name == f"{RDF} Description":
            about.append(attributes.get(f"{RDF} about", attributes.get("about", "")))
            texts.update({key: [value] for key, value in attributes.items() if key in PROPERTIES})
        path.append(name)
        if len(path) > MAX_DEPTH:
            raise UserError("its XMP packet is nested too deeply")
        if name in PROPERTIES and not within:
            within.append(name)
        if is_property():
            if name in begun:
                raise UserError("its XMP packet has two descriptions")
            begun[name] = parser.CurrentByteIndex
            texts[name] = []
        elif name == f"{RDF} RDF":
            begun[name] = parser.CurrentByteIndex

    def text(content: str) -> None:
        for name in within:
            texts.setdefault(name, []).append(content)

    def end(name: str) -> None:
        """Of an element without an end tag expat has no end: it stands behind it already."""
        place = parser.CurrentByteIndex
        if is_property():
            last = after_start(packet, begun[name])
            places[name] = (begun[name], (last if is_empty(last) else after_start(packet, place)) + 1)
        elif name == f"{RDF} RDF" and not is_empty(after_start(packet, begun[name])):
            ends.append(place)
        path.pop()
        if within and within[0] not in path:
            within.clear()

    def is_empty(last: int) -> bool:
        return packet[last - 1] == ord("/")

    def is_property() -> bool:
        return path[-1] in PROPERTIES and path[-3:-1] == [f"{RDF} RDF", f"{RDF} Description"]

    def refuse(*declaration: object) -> None:  # entities: a few bytes may become gigabytes
        raise UserError("its XMP packet declares a document type")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = begin, end, text
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(packet, True)
    if len(ends) != 1:
        raise UserError("its XMP packet is damaged")
    return Xmp(packet, about[0] if about else "", ends[0], places, {name: "".join(parts) for name, parts in texts.items()})


def after_start(packet: bytes, place: int) -> int:
    """Of the tag at this place, its last byte: a > may stand in a quoted attribute."""
    quote = 0
    while packet[place] != ord(">") or quote:
        if packet[place] in (quote, *b"'\"") and (not quote or packet[place] == quote):
            quote = 0 if quote else packet[place]
        place += 1
    return place


class Iptc(NamedTuple):
    """The data sets of IPTC-IIM within Photoshop's resources, where JPEG files keep them."""

    before: bytes  # resources
    sets: list[tuple[tuple[int, int], bytes]]  # ((record, number), as it stands there with its head of 5 bytes)
    after: bytes

    @classmethod
    def read(cls, resources: bytes | None) -> "Iptc":
        block, place = resources or b"", 0
        try:
            while place + 12 <= len(block):  # signature, id, a name as Pascal has it, size
                head = place + 6 + (block[place + 6] // 2 + 1) * 2
                (kind,), (size,) = struct.unpack_from(">H", block, place + 4), struct.unpack_from(">I", block, head)
                end = head + 4 + size + size % 2
                if block[place : place + 4] not in (b"8BIM", b"PHUT", b"DCSR", b"AgHg", b"MeSa") or head + 4 + size > len(block):
                    raise ValueError
                if kind == IPTC_RESOURCE:
                    return cls(block[:place], data_sets(block[head + 4 : head + 4 + size]), block[end:])
                place = end
        except (struct.error, IndexError, ValueError):
            raise UserError("its IPTC block is damaged") from None
        return cls(block, [], b"")

    def is_utf_8(self) -> bool:
        return any(key == CHARACTERS and data[5:] == UTF_8 for key, data in self.sets)

    def description(self) -> str:
        texts = [data[5:] for key, data in self.sets if key == CAPTION]
        return texts[0].decode("utf-8" if self.is_utf_8() else "latin-1", errors="replace").strip() if texts else ""

    def described(self, text: str) -> bytes:
        """The resources. Where other texts stand in a character set that is not named, no set is named now: they would be misread."""
        content = text.encode()
        if len(content) > MAX_CAPTION:
            raise UserError(f"IPTC takes a description of {MAX_CAPTION:,} bytes; this has {len(content):,}")
        is_named = self.is_utf_8() or all(data[5:].isascii() for (record, number), data in self.sets if record == 2 and number < 200)
        if not is_named and not text.isascii():
            raise UserError("its IPTC block has texts in a character set that it does not name: ASCII alone could be added")
        replaced = {CAPTION, CHARACTERS} if is_named else {CAPTION}
        sets = [(key, data) for key, data in self.sets if key not in replaced]
        sets += [(CHARACTERS, data_set(CHARACTERS, UTF_8))] if is_named else []
        sets += [] if any(key == VERSION for key, _ in sets) else [(VERSION, data_set(VERSION, b"\0\4"))]
        sets.append((CAPTION, data_set(CAPTION, content)))
        block = b"".join(data for _, data in sorted(sets, key=lambda its: its[0]))  # stable: keywords stand in their order
        head = struct.pack(">4sHHI", b"8BIM", IPTC_RESOURCE, 0, len(block))
        return self.before + head + block + b"\0" * (len(block) % 2) + self.after


def data_set(key: tuple[int, int], content: bytes) -> bytes:
    return struct.pack(">BBBH", 0x1C, *key, len(content)) + content


def data_sets(block: bytes) -> list[tuple[tuple[int, int], bytes]]:
    found, place = [], 0
    while place + 5 <= len(block) and block[place] == 0x1C:
        record, number, size = struct.unpack_from(">BBH", block, place + 1)
        if size & 0x8000 or place + 5 + size > len(block):  # an extended one holds a preview or the like
            raise ValueError
        found.append(((record, number), block[place : place + 5 + size]))
        place += 5 + size
    if block[place:].strip(b"\0"):
        raise ValueError
    return found
