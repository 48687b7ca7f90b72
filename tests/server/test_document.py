"""The OpenAPI document, and what happens to requests that are made up from it."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from tests.server.kit import ANSWER, listening, scripted, services_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package's own imports warn
    import schemathesis
    from schemathesis.checks import not_a_server_error

OPERATIONS = [
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{name}", "GET"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/health", "GET"),
    ("/metrics", "GET"),
]


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    services = services_of(scripted(ANSWER), tmp_path_factory.mktemp("state"))
    with listening(services) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_makes_the_server_fail(document, path, method):
    operation = document[path][method]

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def holds(case):
        case.call_and_validate(checks=[not_a_server_error])

    holds()


def test_every_door_is_described_with_its_errors(document):
    found = document.raw_schema
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        operation = found["paths"][path]["post"]
        assert operation["requestBody"]["required"]
        assert {"200", "400", "401", "404", "413", "429", "500"} <= set(operation["responses"])
        assert "422" not in operation["responses"]
    assert "text/event-stream" in str(found["paths"]["/v1/chat/completions"]["post"]["responses"])
