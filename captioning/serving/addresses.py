"""Which IP addresses a download may connect to: those of public hosts, by a table of our own. Knows nothing of URLs or names.

`ipaddress.is_global` is no such policy: it lets multicast, 6to4, NAT64 and site-local addresses through, and what it says differs between
patch releases of Python. Here every entry of IANA's two registries of special-purpose addresses is refused, globally reachable or not.
"""

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

PUBLIC_6 = IPv6Network("2000::/3")
"""All of IPv6 that is given out to hosts (RFC 4291, section 2.4). Outside of it lie, among others: `::` and `::1`; IPv4-compatible ::/96
and IPv4-mapped ::ffff:0:0/96; NAT64's 64:ff9b::/96 and 64:ff9b:1::/48 (RFC 6052, 8215), each with any IPv4 address inside; discard-only
100::/64 (RFC 6666); segment routing 5f00::/16 (RFC 9602); unique local fc00::/7; link-local fe80::/10; site-local fec0::/10; multicast
ff00::/8."""

REFUSED_6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # Teredo 2001::/32, benchmarking 2001:2::/48, ORCHID 2001:10::/28 and 2001:20::/28, drones 2001:30::/28
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: an IPv4 address inside
            "2620:4f:8000::/48",  # AS112: answers for private names
            "3ffe::/16",  # 6bone, given back (RFC 3701)
            "3fff::/20",  # documentation (RFC 9637)
        ),
    )
)

REFUSED_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network; 0.0.0.0 reaches this very machine
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT (RFC 6598); the metadata of a cloud, too
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's host, which only its guests can see: the one such address outside the registries
            "169.254.0.0/16",  # link-local; the metadata of most clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocols: DS-Lite, NAT64 discovery, metadata
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # automatic multicast tunneling
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved; broadcast at its end
        ),
    )
)


def is_public(address: str) -> bool:
    """Whether this address, in digits, may be connected to. What is no address may not, nor one with a zone (`fe80::1%eth0`)."""
    try:
        known = ip_address(address)
    except ValueError:
        return False
    if isinstance(known, IPv6Address):
        return known.scope_id is None and known in PUBLIC_6 and not any(known in network for network in REFUSED_6)
    return not any(known in network for network in REFUSED_4)
