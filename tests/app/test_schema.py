"""The API does what its own schema says, whatever it is asked: no server errors (schemathesis)."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from runs_helpers import give_pictures, settings

EXAMPLES = 8  # of each route
ROUTE = hypothesis_settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# Answered by what a worker does: asked for beside one that works.  The other routes are asked while it stands still, or
# it would draw what random requests ask for, 64 pictures of 4096 × 4096 pixels in 500 steps.
WORKS = r"/txt2img$|/restart$"
ENDLESS = re.compile(r"/events$")  # server-sent events of what waits: read for a moment


@pytest.fixture
def schema() -> Callable[[Any], Any]:
    schemathesis = pytest.importorskip("schemathesis")
    return lambda app: schemathesis.openapi.from_url(f"{app.url}/openapi.json")


def ask(case: Any, **options: Any) -> int:
    """Send a request; its status, which is no server's error."""
    import requests

    case.headers = {**(case.headers or {}), **options.pop("headers", {})}
    with requests.request(**case.as_transport_kwargs(), stream=True, timeout=60, **options) as answer:
        text = "" if ENDLESS.search(case.path) and answer.ok else answer.text[:500]
        assert answer.status_code < 500, f"{case.as_curl_command()}: {text}"
        if ENDLESS.search(case.path) and answer.ok:
            assert next(answer.iter_lines()).startswith(b"event: "), "how it stands comes at once"
        return int(answer.status_code)


def test_no_request_breaks_the_server(own_app: Callable[..., Any], schema: Callable[[Any], Any]) -> None:
    app = own_app()
    app.still_worker()  # random requests are to be answered, not drawn
    asked = []
    for found in schema(app).exclude(path_regex=WORKS).get_all_operations():

        @ROUTE
        @given(case=found.ok().as_strategy())
        def no_server_error(case: Any) -> None:
            asked.append((case.method, case.path, ask(case)))

        no_server_error()
    paths = {path for _, path, _ in asked}
    assert len(paths) > 20
    assert any(map(ENDLESS.search, paths))
    assert any(status < 300 for _, _, status in asked)
    assert app.call("/api/v1/status")["version"]


def test_events_of_what_is_there_come_at_once(
    own_app: Callable[..., Any], schema: Callable[[Any], Any]
) -> None:
    """Random names meet no job and no run: here they have those that wait."""
    app = own_app()
    app.still_worker()
    give_pictures(app.root)
    said = app.call("/api/v1/trainings", {"settings": settings("it waits")})
    assert "job" in said, said
    there = {"job": said["job"], "name": quote(said["run"])}
    for found in schema(app).include(path_regex=ENDLESS.pattern).get_all_operations():

        @ROUTE
        @given(case=found.ok().as_strategy())
        def one_event(case: Any) -> None:
            case.path_parameters = {key: there[key] for key in case.path_parameters}
            assert ask(case) in (200, 422)

        one_event()


@pytest.mark.slow
def test_no_request_breaks_what_a_worker_answers(
    own_app: Callable[..., Any], schema: Callable[[Any], Any]
) -> None:
    """Pictures of few steps and pixels, and workers that end: the worker works, so what costs minutes is cut down."""
    app, statuses = own_app(), []
    routes = {
        found.ok().path: found.ok() for found in schema(app).include(path_regex=WORKS).get_all_operations()
    }
    small = {"steps": 2, "width": 64, "height": 64, "batch_size": 2, "n_iter": 1}

    @ROUTE
    @given(case=routes["/sdapi/v1/txt2img"].as_strategy())
    def drawn(case: Any) -> None:
        if isinstance(case.body, dict):
            for name, most in small.items():
                value = case.body.get(name, most)
                if isinstance(value, int):  # what is no number is refused
                    case.body[name] = min(value, most)
            if len(statuses) % 2:  # what is random here is refused, all of it
                case.body |= small | {"sampler_name": "Euler", "scheduler": None, "override_settings": None}
                case.body["prompt"] = f"cat {case.body.get('prompt') or ''}"
        statuses.append(ask(case))

    @ROUTE
    @given(case=routes["/api/v1/workers/{device}/restart"].as_strategy())
    def restarted(case: Any) -> None:
        if len(statuses) % 2:
            case.path_parameters = {"device": "cpu"}
        statuses.append(ask(case))

    drawn()
    assert 200 in statuses, "pictures were drawn"
    assert 400 in statuses or 422 in statuses
    restarted()
    assert app.call("/api/v1/status")["version"]


def test_every_route_is_described(app: Any) -> None:
    described = app.call("/openapi.json")["paths"]
    assert len(described) > 30
    for path, methods in described.items():
        for method, about in methods.items():
            assert about.get("description"), f"{method} {path}"
            assert about["tags"], f"{method} {path}"
