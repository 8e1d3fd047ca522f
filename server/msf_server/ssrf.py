"""SSRF guard: URLs from callers may lead to public addresses only, and to ports that the operator allows.

Whoever chose a URL learns only that it is refused, never which addresses its host has.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL = 2000  # characters
MAX_HOST = 253
SCHEME_PORTS = {"http": 80, "https": 443}
PORTS = (80, 443, 8080, 8443)

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label: an IPv4 address, however it is written

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")  # its last 32 bits are an IPv4 address
_ISATAP, _UNIVERSAL = (
    0x5EFE,
    0x02000000,
)  # bits 32 to 63 of an address that tunnels to its last 32, and one that may be set
# IANA's special-purpose blocks, also those that some versions of `ipaddress` take for global.
_SPECIAL: tuple[Network, ...] = (
    *map(IPv4Network, ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12")),
    *map(IPv4Network, ("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15")),
    *map(IPv4Network, ("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4")),
    *map(IPv6Network, ("2001::/23", "2001:db8::/32", "3ffe::/16", "3fff::/20")),
)


class AddressRefused(Exception):
    """The URL leads to an address that callers may not use."""


def check_url(url: str, allowed: Sequence[Network] = (), ports: Collection[int] = PORTS) -> None:
    """Check `url` as far as possible without resolving its host. Raises AddressRefused."""
    host, port = parse(url)
    address = _literal(host)
    if address is not None:
        _check(address, port, allowed, ports)
    elif not allowed:
        _check_port(port, ports)  # otherwise the host may be in a network where every port is allowed


async def resolve(host: str, port: int, allowed: Sequence[Network], ports: Collection[int] = PORTS) -> str:
    """Resolve `host` to one address. Raises AddressRefused if any of its addresses is not allowed, OSError if none."""
    address = _literal(host)
    addresses = [address] if address else await _look_up(host)
    for each in addresses:
        _check(each, port, allowed, ports)
    return str(addresses[0])


def is_allowed(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Return whether `address` is public, or in an `allowed` network."""
    return _is_in(address, allowed) or is_public(address)


def _check(address: Address, port: int, allowed: Sequence[Network], ports: Collection[int]) -> None:
    """Raise AddressRefused unless callers may use `port` of `address`: any port of the networks that are allowed."""
    if _is_in(address, allowed):
        return
    if not is_public(address):
        raise AddressRefused("its host leads to what is not a public address")
    _check_port(port, ports)


def _check_port(port: int, ports: Collection[int]) -> None:
    if port not in ports:
        raise AddressRefused(f"its port is {port}, and must be one of {', '.join(map(str, sorted(ports)))}")


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    inner = _translated(address)
    return any(each in network for network in networks for each in (address, inner) if each is not None)


def parse(url: str) -> tuple[str, int]:
    """Return the host and the port of an absolute http or https URL. Raises AddressRefused."""
    if len(url) > MAX_URL:
        raise AddressRefused(f"it must have at most {MAX_URL} characters")
    if not url.isprintable() or any(character.isspace() or character == "\\" for character in url):
        raise AddressRefused("it must not contain spaces, control characters or backslashes")
    try:
        parts = httpx.URL(url)
        host, port = parts.raw_host.decode("ascii").lower().removesuffix("."), parts.port
        for label in re.findall(r"\bxn--([^.]*)", host):
            label.encode("ascii").decode("punycode")
    except (httpx.InvalidURL, ValueError) as error:  # IDNA failures are of several classes
        raise AddressRefused("it is not a valid URL") from error
    if parts.scheme not in SCHEME_PORTS or not host:
        raise AddressRefused("it must start with https:// or http:// and a host")
    if "#" in url or "@" in re.split("[/?]", url.partition("://")[2])[0]:
        raise AddressRefused("it must not contain a user, a password or a fragment")
    port = SCHEME_PORTS[parts.scheme] if port is None else port
    if not 1 <= port <= 65535:
        raise AddressRefused("its port must be from 1 to 65535")
    _check_host(host)
    return host, port


def is_public(address: Address) -> bool:
    """Return whether `address` is global unicast, and so is every IPv4 address inside it."""
    if isinstance(address, IPv6Address):
        inner = _translated(address)
        if inner is not None:
            return is_public(inner)
        if address.scope_id is not None or address not in _GLOBAL_UNICAST:
            return False
        if int(address) >> 32 & 0xFFFFFFFF & ~_UNIVERSAL == _ISATAP and not is_public(_last_32_bits(address)):
            return False
    return address.is_global and not any(address in network for network in _SPECIAL)


def _translated(address: Address) -> IPv4Address | None:
    """Return the IPv4 address that stands behind an IPv6 address of a prefix made for that, if it is one."""
    if isinstance(address, IPv4Address):
        return None
    return address.ipv4_mapped or address.sixtofour or (_last_32_bits(address) if address in _NAT64 else None)


def _last_32_bits(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)


def _check_host(host: str) -> None:
    """Raise AddressRefused unless `host` is an IP address in its usual form or a valid name."""
    if _literal(host) is not None:
        return
    labels = host.split(".")
    if len(host) > MAX_HOST or not all(_LABEL.fullmatch(label) for label in labels) or _NUMBER.fullmatch(labels[-1]):
        raise AddressRefused("its host is neither a valid name nor an IP address in its usual form")


def _literal(host: str) -> Address | None:
    with suppress(ValueError):
        return ip_address(host)
    return None


async def _look_up(host: str) -> list[Address]:
    """Return the addresses of a name. Raises OSError.

    Each name has a thread: in a pool, a few names that are never answered would hold up all others.
    """
    loop = asyncio.get_running_loop()
    addresses: asyncio.Future[list[Address]] = loop.create_future()

    def settle(result: list[Address] | Exception) -> None:
        if addresses.done():
            return
        if isinstance(result, Exception):
            addresses.set_exception(result)
        else:
            addresses.set_result(result)

    def look_up() -> None:
        result: list[Address] | Exception
        try:
            result = [ip_address(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
        except Exception as error:
            result = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=look_up, name="resolver", daemon=True).start()  # a daemon: it does not hold up an exit
    return await addresses
