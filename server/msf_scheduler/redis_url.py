"""Redis URLs: a check, strict where redis-py ignores a mistake or defers it to the first connection, and passwords."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

URL_SCHEMES = ("redis://", "rediss://", "unix://", "redis-cluster://", "rediss-cluster://", "redis-sentinel://")
TLS_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
OPTIONS = {  # pattern of the value by option; further ones would reach redis-py's constructors
    "db": r"\d{1,9}",
    "client_name": r"[!-~]+",
    **dict.fromkeys(TLS_FILES, r".+"),
    "ssl_cert_reqs": r"none|optional|required",
    "ssl_check_hostname": r"true|false",
}


def check_redis_url(url: str) -> None:
    """Raise ValueError, without the URL's credentials, unless `connect` takes the URL."""
    scheme, separator, _ = url.partition("://")
    if f"{scheme}{separator}" not in URL_SCHEMES:
        raise ValueError(f"unknown kind of Redis URL. Allowed: {', '.join(URL_SCHEMES)}")
    if not url.isprintable() or " " in url:
        raise ValueError("a URL has no spaces and no control characters. Allowed: %20 for a space")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("malformed address of Redis. Allowed: redis://host:port") from None
    if parts.fragment or "#" in url:
        raise ValueError("a Redis URL has no part after '#'. Allowed: %23 for a '#' in a password")
    _check_options(parts)
    if scheme == "unix":
        if not unquote(parts.path).startswith("/") or parts.netloc.rpartition("@")[2]:
            raise ValueError("the socket's path is not absolute. Allowed: unix:///path/of/the/socket")
        return
    for node in parts.netloc.rpartition("@")[2].split(",") if scheme == "redis-sentinel" else [parts.netloc]:
        _check_address(node)
    _check_path(scheme, parts.path.strip("/"))


def with_password(url: str, password: str) -> str:
    """Return the URL with this password for its user."""
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0]
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{hosts}").geturl()


def _check_address(node: str) -> None:
    parts = urlsplit(f"//{node}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("invalid port of Redis. Allowed: 1 to 65535")
    if not parts.hostname:
        raise ValueError("the Redis URL names no host. Allowed: redis://host:port")


def _check_path(scheme: str, path: str) -> None:
    if scheme.endswith("-cluster"):
        if path:
            raise ValueError("a Redis Cluster has no numbered databases. Allowed: redis-cluster://host:port")
    elif scheme == "redis-sentinel":
        if not path or "/" in path:
            raise ValueError("the Redis URL names no service. Allowed: redis-sentinel://host:port,host:port/service")
    elif path and not re.fullmatch(OPTIONS["db"], path, re.ASCII):
        raise ValueError(f"invalid database {path!r}. Allowed: a number, as in redis://host:port/0")


def _check_options(parts: SplitResult) -> None:
    try:
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError("malformed options after '?'. Allowed: name=value, separated by '&'") from None
    for name, value in options:
        allowed = [option for option in OPTIONS if not option.startswith("ssl_") or parts.scheme.startswith("rediss")]
        if name not in allowed or parts.scheme == "redis-sentinel":
            names = "none" if parts.scheme == "redis-sentinel" else ", ".join(allowed)
            raise ValueError(f"unknown option {name!r} after '?'. Allowed with {parts.scheme}://: {names}")
        if not re.fullmatch(OPTIONS[name], value, re.ASCII):
            raise ValueError(f"invalid value {value!r} of option {name}. Allowed: {OPTIONS[name]}")
        if name in TLS_FILES and not Path(value).exists():
            raise ValueError(f"the file {value!r} of option {name} does not exist")
