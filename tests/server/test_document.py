"""The OpenAPI document, and what happens to requests that are made up from it."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from tests.server.kit import FINAL, listening, scripted, services_of

from aperto.server import ServerSettings, Services

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package's own imports warn
    import schemathesis
    from schemathesis.checks import not_a_server_error

# Without reasoning, so that the script keeps to the grammar of requests that forbid it.
PLAIN = f"{FINAL}A summary.<|return|>"
SHORT = 25
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
    services = services_of(scripted(PLAIN), tmp_path_factory.mktemp("state"))
    with listening(services) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """A real model, whose turns are held by the grammar that each request asks for."""
    state = tmp_path_factory.mktemp("nano")
    given = ServerSettings(models=("nano",), context_tokens=512, state_dir=state)
    with listening(Services.create(given)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def check_operation(operation, num_examples):
    """Made-up requests of one operation, valid and not: none may get a status of 500 or above.

    The short run makes up the same ones each time: a script cannot keep to every grammar that a
    request may ask for.
    """

    @settings(
        max_examples=num_examples,
        derandomize=num_examples == SHORT,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def holds(case):
        case.call_and_validate(checks=[not_a_server_error])

    holds()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@pytest.mark.parametrize("num_examples", [SHORT, pytest.param(400, marks=pytest.mark.long)])
def test_no_request_makes_the_server_fail(document, path, method, num_examples):
    check_operation(document[path][method], num_examples)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.long
def test_nor_does_one_with_the_grammar_of_nano(nano, path):
    check_operation(nano[path]["POST"], 100)


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
