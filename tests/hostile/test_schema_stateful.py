"""Sequences of generated requests over all routes (schemathesis' stateful phase)."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, settings

from tests.hostile.conftest import Attempts
from tests.server.test_schema import ANSWER_WITHIN_S, API, CHECKS, url

__all__ = ["url"]

NUM_SEQUENCES = 25
NUM_STEPS = 8


def test_sequences_of_requests_are_answered_as_documented(url: str, attempts: Attempts) -> None:
    """Sequences of requests in which one uses what another's answer contains."""

    class Sequences(API.as_state_machine()):  # type: ignore[misc]  # made from the schema
        def get_call_kwargs(self, case: schemathesis.Case[Any]) -> dict[str, Any]:
            return {"base_url": url, "timeout": ANSWER_WITHIN_S}

        def validate_response(self, response: Any, case: schemathesis.Case[Any], **options: Any) -> None:
            attempts.num_tried += 1
            assert response.status_code < 500 or response.status_code == 504, response.text
            case.validate_response(response, checks=CHECKS)

    Sequences.run(
        settings=settings(
            max_examples=NUM_SEQUENCES,
            stateful_step_count=NUM_STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
    )
