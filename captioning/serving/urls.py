"""A URL that a stranger gave, taken apart strictly: in a spelling that every parser reads alike, or not at all. Knows no network."""

import re
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple
from urllib.parse import urljoin

MAX_LENGTH = 2048
PLAIN = re.compile(rf"[!-\[\]-~]{{1,{MAX_LENGTH}}}")  # printable ASCII without space and backslash: parsers agree on no others
URL = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(80|443))?((?:[/?][^#]*)?)(?:#.*)?", re.IGNORECASE)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
NAME = re.compile(rf"(?=.{{1,253}}$)(?:{LABEL}\.)+{LABEL}")  # two labels at least: one alone is a name of the local network
NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")  # what ends so is an IPv4 address, or an attempt at one
PORTS = {"http": 80, "https": 443}


class Forbidden(Exception):
    """A URL, or what its name stands for, that is not asked for. It says why, for a log: a client is not told."""


class Target(NamedTuple):
    scheme: str
    host: str  # a name in lower case, or an IP address as ipaddress writes it
    port: int
    path: str  # with the query

    @property
    def authority(self) -> str:
        """For the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def has_name(self) -> bool:
        return ":" not in self.host and not NUMBER.fullmatch(self.host)

    def is_among(self, hosts: tuple[str, ...]) -> bool:
        """`*.example.org` stands for all names below example.org, not for itself."""
        return any(self.host.endswith(host[1:]) if host.startswith("*.") else self.host == host for host in map(str.lower, hosts))

    def joined(self, location: bytes) -> "Target":
        """Where a redirect leads, read as strictly as the first URL. Raises Forbidden; also on the way from https down to http."""
        place = location.decode("ascii", errors="replace")
        if not PLAIN.fullmatch(place):
            raise Forbidden("a redirect not in plain ASCII")
        if place.startswith("//"):
            place = f"{self.scheme}:{place}"
        elif not SCHEME.match(place):  # a path alone is left to urljoin, which would also make sense of `http:///127.0.0.1`
            place = urljoin(f"{self.scheme}://{self.authority}{self.path}", place)
        target = read_url(place)
        if self.scheme == "https" and target.scheme == "http":
            raise Forbidden("a redirect from https to http")
        return target


def read_url(url: str) -> Target:
    """Raises Forbidden for all that is not plainly a web address: user names, other ports, names not in ASCII (they come as
    `xn--`), percent signs in names, names of one label or with a dot at the end, IPv4 addresses in any form but four decimals."""
    match = URL.fullmatch(url) if PLAIN.fullmatch(url) else None
    if match is None:
        raise Forbidden("no http or https URL of a host and port 80 or 443, in plain ASCII")
    scheme, host, port, path = match.groups()
    scheme, host = scheme.lower(), host.lower()
    try:
        if host.startswith("["):
            host = str(IPv6Address(host[1:-1]))
        elif NUMBER.fullmatch(host):
            host = str(IPv4Address(host))
        elif not NAME.fullmatch(host):
            raise Forbidden("no name of a public host")
    except ValueError as error:
        raise Forbidden(str(error)) from None
    return Target(scheme, host, int(port or PORTS[scheme]), path if path.startswith("/") else f"/{path}")
