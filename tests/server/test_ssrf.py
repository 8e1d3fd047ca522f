"""URLs of callers: only valid ones are taken, and only global unicast addresses are reached."""

from __future__ import annotations

import json
import socket
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from msf_server.settings import ServerSettings
from msf_server.ssrf import AddressRefused, check_url, is_allowed, parse, resolve
from tests.server.conftest import client_of, serving
from tests.server.fake_worker import FakeWorker

LABEL = "a" * 63

REFUSED = [
    "http://10.0.0.1/x",
    "https://192.168.1.1:8443/",
    "http://169.254.169.254/latest/meta-data",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[fd00::1]/",
    "http://[::7f00:1]/",
    "http://[fe80::1%25eth0]/",
    "http://[2606:4700::1%25eth0]/",
    "http://0.0.0.0/",
    "http://192.88.99.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.0.1./",
    "http://8.8.8.08/",
    "http://127。0。0。1/",
    "http://１２７.0.0.1/",
    "http://%31%32%37.0.0.1/",
    "http://exa%6dple.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "javascript:alert(1)",
    "//example.com/x",
    "example.com/x",
    "http:example.com",
    "http:///x",
    "http://",
    "https:///x",
    "http://:80/",
    "http://?x",
    "https://user:pass@example.com/",
    "https://user@example.com/",
    "https://@example.com/",
    "http://example.com#x",
    "http://example.com/x#",
    "http://example.com:0/",
    "http://example.com:99999/",
    "http://example.com:65536/",
    "http://example.com:-1/",
    "http://example.com:x/",
    "http://example.com:25/",
    "http://8.8.8.8:6379/",
    "http://[::1",
    "http://::1]/",
    "http://[v1.x]/",
    "http://[2606:4700::1::2]/",
    "http://exa mple.com/",
    " http://example.com/",
    "http://example.com/ x",
    "http://example.com/\tx",
    "http://example.com/\r\nHost: x",
    "http://example.com/\x00",
    "http://example.com\\@127.0.0.1/",
    "http:\\\\example.com/",
    "http://a..example/",
    "http://.example.com/",
    "http://-a.example/",
    "http://a-.example/",
    "http://a,b.example/",
    "http://*.example/",
    "http://xn--zzzzzz-99999999999/",
    "http://\u2603.example/",
    "http://exa\u200bmple.com/",
    "http://\ud800.example/",
    f"http://{LABEL}a.example/",
    f"http://{LABEL}.{LABEL}.{LABEL}.{LABEL}/",
    f"http://{300 * 'h'}/",
    f"https://example.com/{10_000 * 'x'}",
]


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: ascii(url)[:40])
async def test_a_webhook_url_that_cannot_be_used_is_refused_at_admission(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_url(url)


async def test_a_refusal_names_the_field(settings: ServerSettings, worker: FakeWorker) -> None:
    with_webhooks = settings.model_copy(update={"webhook_secret": "a secret that is long enough"})
    async with serving(with_webhooks) as app, client_of(app) as client:
        for url in ("http://127.0.0.1:99999/", f"http://{300 * 'h'}/", "http://\ud800/", "http://[::1", 10_000 * "x"):
            body = json.dumps({"prompt": "bag", "webhook_url": url})
            answer = await client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "webhook_url"), url


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://example.com", "example.com", 443),
        ("HTTPS://EXAMPLE.com./hook?x=1", "example.com", 443),
        ("http://hooks_1.example.com:8080/a%20b", "hooks_1.example.com", 8080),
        ("https://b\u00fccher.example/\u00fc", "xn--bcher-kva.example", 443),
        ("https://8.8.8.8/", "8.8.8.8", 443),
        ("https://[2606:4700::1]:8443/", "2606:4700::1", 8443),
        (f"https://{LABEL}.example/", f"{LABEL}.example", 443),
    ],
)
def test_valid_urls(url: str, host: str, port: int) -> None:
    check_url(url)
    assert parse(url) == (host, port)


def test_ports_are_a_setting_that_does_not_bind_the_operators_own_networks() -> None:
    check_url("https://8.8.8.8:9000/", (), (9000,))
    check_url("http://10.1.2.3:9000/", (ip_network("10.0.0.0/8"),))
    check_url("http://receiver.internal:9000/", (ip_network("10.0.0.0/8"),))
    with pytest.raises(AddressRefused, match="must be one of 80, 443"):
        check_url("http://8.8.8.8:9000/", (ip_network("10.0.0.0/8"),))


PRIVATE = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.255"),
    *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.9", "192.0.0.170", "192.0.2.1"),
    *("192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::7f00:1", "::808:808", "::ffff:10.0.0.1", "::ffff:0:808:808", "64:ff9b::a00:1", "64:ff9b::7f00:1"),
    *("64:ff9b:1::1", "64:ff9b:1::808:808", "100::1", "100:0:0:1::1", "2001::1", "2001:0:808:808::f7f7:f7f7"),
    *("2001:2::1", "2001:10::1", "2001:20::1", "2001:30::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::1"),
    *("2002:c058:6301::1", "2606:4700::5efe:a00:1", "2606:4700::200:5efe:7f00:1", "3ffe::1", "3fff::1", "4000::1"),
    *("5f00::1", "fc00::1", "fd00::1", "fe80::1", "fe80::5efe:808:808", "febf::1", "fec0::1", "feff::1", "ff02::1"),
    "ff0e::1",
]
PUBLIC = [
    *(
        "1.1.1.1",
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "198.20.0.1",
        "223.255.255.255",
    ),
    *("2606:4700::1", "2a00:1450:4001::1", "2001:4860:4860::8888", "2400:cb00::1", "::ffff:8.8.8.8"),
    *("64:ff9b::808:808", "2002:808:808::1", "2606:4700::5efe:808:808"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_global_unicast(address: str) -> None:
    assert not is_allowed(ip_address(address))
    assert is_allowed(ip_address(address), (ip_network(address),)), "unless the operator allows them"


@pytest.mark.parametrize("address", PUBLIC)
def test_global_unicast_addresses(address: str) -> None:
    assert is_allowed(ip_address(address))


def test_an_allowed_ipv4_network_is_allowed_behind_ipv6_too() -> None:
    assert is_allowed(ip_address("::ffff:10.0.0.1"), (ip_network("10.0.0.0/8"),))


async def test_all_addresses_of_a_name_must_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*_: object, **__: object) -> list[Any]:
        return [(0, 0, 0, "", ("8.8.8.8", 443)), (0, 0, 0, "", ("10.0.0.7", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(AddressRefused, match="not a public address") as refusal:
        await resolve("example.com", 443, ())
    assert "10.0.0.7" not in str(refusal.value)
    assert await resolve("example.com", 443, (ip_network("10.0.0.0/8"),)) == "8.8.8.8"
