"""The OpenAPI document, and what happens to requests that are made up from it."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from tests.server.kit import ANSWER, FINAL, listening, scripted, services_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package's own imports warn
    import schemathesis
    from schemathesis.checks import not_a_server_error

PLAIN = f"{FINAL}A summary.<|return|>"
OPERATIONS = [
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/responses", "POST"),
    ("/v1/responses/input_tokens", "POST"),
    ("/v1/responses/compact", "POST"),
    ("/v1/responses/{response_id}", "GET"),
    ("/v1/responses/{response_id}", "DELETE"),
    ("/v1/responses/{response_id}/cancel", "POST"),
    ("/v1/responses/{response_id}/input_items", "GET"),
    ("/v1/messages", "POST"),
    ("/v1/messages/count_tokens", "POST"),
    ("/api/chat", "POST"),
    ("/api/generate", "POST"),
    ("/api/show", "POST"),
    ("/api/pull", "POST"),
    ("/api/version", "GET"),
    ("/api/tags", "GET"),
    ("/api/ps", "GET"),
    ("/v1/models", "GET"),
    ("/v1/models/{name}", "GET"),
    ("/v1/moderations", "POST"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/tokenizer_info", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
]


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    services = services_of(scripted(ANSWER), tmp_path_factory.mktemp("state"))
    with listening(services) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.fixture(scope="module")
def without_reasoning(tmp_path_factory):
    """Summaries are held to an answer alone, which a script must then keep to."""
    services = services_of(scripted(PLAIN), tmp_path_factory.mktemp("plain"))
    with listening(services) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_makes_the_server_fail(document, without_reasoning, path, method):
    described = without_reasoning if path.endswith("/compact") else document
    operation = described[path][method]

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def holds(case):
        case.call_and_validate(checks=[not_a_server_error])

    holds()


def test_every_operation_is_tried(document):
    methods = {"GET", "POST", "DELETE", "PUT", "PATCH"}
    found = {
        (path, method.upper())
        for path, operations in document.raw_schema["paths"].items()
        for method in operations
        if method.upper() in methods
    }
    assert found == set(OPERATIONS)


def test_every_door_is_described_with_its_errors(document):
    found = document.raw_schema
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        operation = found["paths"][path]["post"]
        assert operation["requestBody"]["required"]
        assert {"200", "400", "401", "404", "413", "429", "500"} <= set(operation["responses"])
        assert "422" not in operation["responses"]
    assert "text/event-stream" in str(found["paths"]["/v1/chat/completions"]["post"]["responses"])
