"""Where callers may send us: their addresses may lead to the public network, and nowhere near us."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_TRANSLATED = IPv6Network("64:ff9b::/96")  # NAT64: IPv4 behind it


class AddressRefused(Exception):
    """This address is not for callers to name."""


def check_url(url: str, allowed: Sequence[Network] = ()) -> None:
    """Raises AddressRefused for what can be seen to be wrong without resolving it."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise AddressRefused(str(error)) from error
    if parts.scheme not in ("https", "http") or not parts.host:
        raise AddressRefused("it must begin with https:// or http:// and a host")
    if parts.userinfo:
        raise AddressRefused("it must not carry a password")
    try:
        address = ip_address(parts.host)
    except ValueError:
        return
    if not is_allowed(address, allowed):
        raise AddressRefused(f"{address} is no public address")


def is_allowed(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Whether we may connect there: public unicast, also as IPv6 wraps IPv4, or in a network of the operator's."""
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
    """An address of `host`. Raises AddressRefused when any of them is not allowed, OSError when there is none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    for address in addresses:
        if not is_allowed(address, allowed):
            raise AddressRefused(f"{host} is {address}, no public address")
    return str(addresses[0])
