"""Settings from environment variables."""

from __future__ import annotations

import pytest

from msf_cli.settings import read_settings


def test_lists_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSF_BUCKETS", "1,4")
    monkeypatch.setenv("MSF_CORS_ORIGINS", "https://a.example,https://b.example")
    settings = read_settings()
    assert settings.buckets == (1, 4)
    assert settings.cors_origins == ("https://a.example", "https://b.example")
