"""Guides as a new user follows them: each after the others, and again."""

from __future__ import annotations

import pytest

from tests.hostile.conftest import Attempts
from tests.system.test_documents import README, ROOT, DocumentedService, check_examples, service  # noqa: F401

API, OIP = ROOT / "docs/api.md", ROOT / "docs/oip.md"


@pytest.mark.timeout(900)
def test_examples_run_after_any_other_and_twice(
    service: DocumentedService,  # noqa: F811
    attempts: Attempts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guides followed one after the other, and again."""
    monkeypatch.setenv("WEBHOOK_SECRET", "whsec_c2VjcmV0IG9mIGEgdGVuYW50")
    for guide in (API, README, OIP, README, API, OIP):
        with attempts.attempt(guide.name):
            check_examples(guide, service, monkeypatch)
