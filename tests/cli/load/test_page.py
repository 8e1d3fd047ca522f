from __future__ import annotations

from msf_cli.load.arrivals import poisson
from msf_cli.load.mix import Kind, Mix, PlannedRequest
from msf_cli.load.page import NUM_POINTS, cumulative, page
from msf_cli.load.results import LoadTally, RequestOutcome, RequestResult
from msf_cli.load.sweep import Sweep
from msf_cli.load.workload import LoadPlan, Workload

KIND = next(iter(Mix().kinds))


def result(latency_s: float, outcome: RequestOutcome = RequestOutcome.SUCCEEDED, kind: Kind = KIND) -> RequestResult:
    return RequestResult(kind, 1.0, 1.0, 1.0 + latency_s, outcome)


def test_the_curve_ends_at_the_share_of_successes() -> None:
    points = cumulative([*(result(0.1 * n) for n in range(1, 4)), result(0.01, RequestOutcome.REFUSED)])
    assert [round(x, 6) for x, _ in points] == [0.1, 0.2, 0.3]
    assert [share for _, share in points] == [0.25, 0.5, 0.75]


def test_the_curve_of_many_requests_is_thinned_out() -> None:
    points = cumulative([result(0.001 * n) for n in range(10_000)])
    assert len(points) == NUM_POINTS + 1
    assert points[-1][1] == 1.0


def test_the_page_shows_each_rate_and_escapes_its_arguments() -> None:
    sweep = Sweep(Workload(poisson, Mix()), (5.0, 10.0), 1.0, seed=0, num_alone_runs=0, standalone={KIND: 0.1})
    sweep.plans = [LoadPlan([PlannedRequest(0.0, KIND, 0, 0)] * count, 1.0) for count in (6, 9)]
    sweep.tallies = [LoadTally([result(0.2)], 1), LoadTally([result(0.1, RequestOutcome.REFUSED)], 1)]
    html = page(sweep, (2.0,), url="http://<here>", arrivals="poisson arrivals")
    assert html.index("Goodput in requests/s") < html.index("6 requests/s offered") < html.index("9 requests/s offered")
    assert "No request succeeded" in html
    assert "http://&lt;here&gt;" in html
    assert html.count("<svg") == 2
