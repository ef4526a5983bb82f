"""The dashboard checker fills in variables as Grafana does and tells an empty panel from one that shows something."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from charts.dashboards import verify
from charts.dashboards.verify import QueryError


def a_dashboard(
    expression: str = "up", *, instant: bool = False, variables: tuple[tuple[str, str], ...] = ()
) -> dict[str, Any]:
    return {
        "templating": {"list": [{"type": "query", "name": name, "query": query} for name, query in variables]},
        "panels": [
            {"type": "row", "panels": []},
            {"type": "stat", "title": "T", "targets": [{"refId": "A", "expr": expression, "instant": instant}]},
        ],
        "annotations": {"list": []},
    }


class Recorded:
    """Answers with prepared data and remembers what was asked."""

    def __init__(self, *, now: list[str] | None = None, window: list[list[str]] | None = None) -> None:
        self.now = [] if now is None else now
        self.window = [] if window is None else window
        self.labels: dict[str, list[str]] = {}
        self.asked: list[tuple[str, Mapping[str, str]]] = []

    def __call__(self, path: str, parameters: Mapping[str, str]) -> Any:
        self.asked.append((path, parameters))
        if path.startswith("/api/v1/label/"):
            return self.labels[path.split("/")[4]]
        if path == "/api/v1/query":
            return {"resultType": "vector", "result": [{"metric": {}, "value": [1, value]} for value in self.now]}
        series = [{"metric": {}, "values": [[1, value] for value in values]} for values in self.window]
        return {"resultType": "matrix", "result": series}

    def expressions(self) -> set[str]:
        return {parameters["query"] for _, parameters in self.asked if "query" in parameters}


def test_a_panel_with_data_is_not_empty() -> None:
    (result,) = verify.verify(a_dashboard(), Recorded(now=["1"], window=[["1", "2"]]))
    assert (result.now, result.window, result.empty) == (1, 1, False)


@pytest.mark.parametrize("window", [[], [["NaN", "NaN"]], [["+Inf"]]])
def test_no_series_and_no_finite_number_are_empty(window: list[list[str]]) -> None:
    (result,) = verify.verify(a_dashboard(), Recorded(window=window))
    assert result.empty


def test_one_finite_number_in_the_window_is_enough_for_a_graph() -> None:
    (result,) = verify.verify(a_dashboard(), Recorded(now=["NaN"], window=[["NaN", "3", "NaN"]]))
    assert not result.empty


def test_a_table_must_have_rows_now() -> None:
    (result,) = verify.verify(a_dashboard(instant=True), Recorded(window=[["3"]]))
    assert result.empty


def test_a_scalar_counts_as_one_series() -> None:
    def scalar(path: str, _parameters: Mapping[str, str]) -> Any:
        if path == "/api/v1/query":
            return {"resultType": "scalar", "result": [1, "2"]}
        return {"resultType": "matrix", "result": []}

    (result,) = verify.verify(a_dashboard(instant=True), scalar)
    assert result.now == 1


def test_variables_become_all_their_values_and_later_ones_see_earlier_ones() -> None:
    query = Recorded(now=["1"], window=[["1"]])
    query.labels = {"namespace": ["shop", "team-a"], "workload": ["a.b"]}
    variables = (
        ("namespace", "label_values(info, namespace)"),
        ("workload", 'label_values(info{namespace=~"$namespace"}, workload)'),
    )
    results = verify.verify(a_dashboard('up{n=~"$namespace", w=~"${workload}"}', variables=variables), query)
    assert [result.panel for result in results] == ["variable namespace", "variable workload", "T"]
    assert query.asked[1][1]["match[]"] == 'info{namespace=~"(shop|team-a)"}'
    assert query.expressions() == {r'up{n=~"(shop|team-a)", w=~"(a\\.b)"}'}


def test_a_variable_without_values_is_empty() -> None:
    query = Recorded(now=["1"], window=[["1"]])
    query.labels = {"job": []}
    results = verify.verify(a_dashboard(variables=(("job", "label_values(info, job)"),)), query)
    assert [result.panel for result in results if result.empty] == ["variable job"]


def test_intervals_are_filled_in() -> None:
    query = Recorded()
    expression = "rate(a[$__rate_interval]) + increase(a[$__range]) + rate(a[$__interval])"
    verify.verify(a_dashboard(expression), query, at=1000, window_s=600, step_s=10, rate_interval="40s")
    assert query.expressions() == {"rate(a[40s]) + increase(a[600s]) + rate(a[10s])"}
    _, window = query.asked[1]
    assert (window["start"], window["end"], window["step"]) == ("400", "1000", "10")


def test_an_unknown_variable_is_an_error() -> None:
    with pytest.raises(KeyError, match="cluster"):
        verify.verify(a_dashboard('up{c="$cluster"}'), Recorded())


def test_a_refused_query_is_reported_with_prometheus_words() -> None:
    def refuse(_path: str, _parameters: Mapping[str, str]) -> Any:
        raise QueryError("400: parse error: unexpected end of input")

    (result,) = verify.verify(a_dashboard("sum("), refuse)
    assert result.empty
    assert "unexpected end of input" in verify.table([result])


def test_a_quiet_annotation_is_no_finding_and_a_broken_one_is() -> None:
    dashboard = a_dashboard()
    dashboard["annotations"]["list"] = [{"name": "Rollouts", "expr": "up == 2"}]
    assert [result.panel for result in verify.verify(dashboard, Recorded(window=[["1"]]))] == ["T"]

    def refuse(_path: str, parameters: Mapping[str, str]) -> Any:
        if parameters["query"] == "up == 2":
            raise QueryError("400: parse error")
        return Recorded(window=[["1"]])(_path, parameters)

    assert [result.panel for result in verify.verify(dashboard, refuse) if result.empty] == ["annotation Rollouts"]


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            good = urllib.parse.parse_qs(url.query)["query"] == ["up"]
            body = json.dumps({"data": {"path": url.path}} if good else {"error": "parse error"}).encode()
            self.send_response(200 if good else 400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_asks_a_prometheus_over_http(server: str) -> None:
    assert verify.prometheus(server)("/api/v1/query", {"query": "up"}) == {"path": "/api/v1/query"}


def test_a_refusal_over_http_carries_the_answer(server: str) -> None:
    with pytest.raises(QueryError, match=r"400: .*parse error"):
        verify.prometheus(server)("/api/v1/query", {"query": "sum("})


def test_an_unreachable_prometheus_is_named() -> None:
    with pytest.raises(QueryError, match=r"http://127\.0\.0\.1:1"):
        verify.prometheus("http://127.0.0.1:1")("/api/v1/query", {"query": "up"})


def test_a_base_url_without_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="must start with http"):
        verify.prometheus("127.0.0.1:9090")
