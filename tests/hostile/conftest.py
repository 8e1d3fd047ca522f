"""Attempts of hostile behaviour: a count of those tried and held, and the table that `make hostile` prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import pytest
from tabulate import tabulate

_ATTEMPTS = "attempts"  # user property of a test's report, which also reaches the process that prints the table


@dataclass
class Attempts:
    """Attempts of one kind of hostile behaviour. One that fails does not keep the others from being tried."""

    kind: str
    num_tried: int = 0
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Count the block as one attempt; an assertion that fails in it fails the test at its end."""
        self.num_tried += 1
        try:
            yield
        except Exception as error:  # a timeout or a refused connection is a failure as well as an assertion
            self.failures.append(f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


@pytest.fixture
def attempts(request: pytest.FixtureRequest) -> Iterator[Attempts]:
    """Count the attempts of one test; its docstring's first line names the kind."""
    docstring = getattr(request.function, "__doc__", None) or request.node.name
    counted = Attempts(docstring.strip().partition("\n")[0])
    yield counted
    request.node.user_properties.append((_ATTEMPTS, asdict(counted)))
    assert counted.num_tried, "the test tried nothing"
    assert not counted.failures, "\n".join(counted.failures)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "hostile" in item.path.parts:
            item.add_marker("hostile")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    counted = [
        Attempts(**value)
        for report in reports
        if getattr(report, "when", "") == "teardown"
        for name, value in report.user_properties
        if name == _ATTEMPTS
    ]
    rows = [
        (attempts.kind, attempts.num_tried, attempts.num_tried - len(attempts.failures), "; ".join(attempts.failures))
        for attempts in counted
    ]
    if rows:
        terminalreporter.section("hostile behaviour")
        terminalreporter.write_line(
            tabulate(rows, headers=("kind", "tried", "held", "failed"), maxcolwidths=(60, 6, 6, 60))
        )
