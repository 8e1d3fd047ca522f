"""SSRF guard: URLs from callers may lead to public addresses only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_TRANSLATED = IPv6Network("64:ff9b::/96")  # NAT64, which leads to IPv4


class AddressRefused(Exception):
    """The URL leads to an address that callers may not use."""


def check_url(url: str, allowed: Sequence[Network] = ()) -> None:
    """Check `url` as far as possible without resolving its host. Raises AddressRefused."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise AddressRefused(str(error)) from error
    if parts.scheme not in ("https", "http") or not parts.host:
        raise AddressRefused("it must start with https:// or http:// and a host")
    if parts.userinfo:
        raise AddressRefused("it must not contain a password")
    try:
        address = ip_address(parts.host)
    except ValueError:
        return
    if not is_allowed(address, allowed):
        raise AddressRefused(f"{address} is not a public address")


def is_allowed(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Return whether `address` is public unicast (an IPv4 address wrapped in IPv6 too) or in an `allowed` network."""
    if any(address in network for network in allowed if network.version == address.version):
        return True
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return is_allowed(inner, allowed)
        if address in _TRANSLATED or address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


async def resolve(host: str, port: int, allowed: Sequence[Network]) -> str:
    """Resolve `host` to one address. Raises AddressRefused if any of its addresses is not allowed, OSError if none."""
    entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]
    for address in addresses:
        if not is_allowed(address, allowed):
            raise AddressRefused(f"{host} resolves to {address}, which is not a public address")
    return str(addresses[0])
