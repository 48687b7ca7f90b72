"""Who may come in, and with how much."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from tests.server.kit import ANSWER, CHAT, USER, client_of, listening, scripted, services_of
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

JSON = {"Content-Type": "application/json"}


def get(tmp_path, path="/v1/models", headers=None, **settings):
    async def run():
        async with client_of(services_of(scripted(ANSWER), tmp_path, **settings)) as client:
            return await client.get(path, headers=headers)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer one"}, 200),
        ({"Authorization": "bearer two"}, 200),
        ({"x-api-key": "two"}, 200),
        ({"Authorization": "Bearer on"}, 401),
        ({"Authorization": "Bearer \xff"}, 401),
        ({"Authorization": "Basic one"}, 401),
    ],
)
def test_keys(tmp_path, headers, status):
    headers = {name: value.encode("latin-1") for name, value in headers.items()}
    response = get(tmp_path, headers=headers, api_keys=("one", "two"))
    assert response.status_code == status
    if status == 401:
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


def test_health_is_open_and_metrics_are_not(tmp_path):
    assert get(tmp_path, "/health", api_keys=("one",)).status_code == 200
    assert get(tmp_path, "/metrics", api_keys=("one",)).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("", 403),
    ],
)
def test_foreign_host_names_do_not_reach_a_local_server(tmp_path, host, status):
    assert get(tmp_path, headers={"Host": host}, check_host=True).status_code == status


def test_other_origins_may_not_call_unless_allowed(tmp_path):
    headers = {"Origin": "https://a.example"}
    assert "access-control-allow-origin" not in get(tmp_path, headers=headers).headers
    response = get(tmp_path, headers=headers, cors_origins=("https://a.example",))
    assert response.headers["access-control-allow-origin"] == "https://a.example"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_bodies_that_a_foreign_page_may_send_unasked_are_not_read(tmp_path, kind):
    headers = {"origin": "https://evil.example", **({"content-type": kind} if kind else {})}

    async def run():
        async with client_of(services_of(scripted(ANSWER), tmp_path)) as client:
            for path in ("/v1/responses", CHAT, "/v1/messages", "/api/chat"):
                response = await client.post(path, content=b'{"model": "x"}', headers=headers)
                assert response.status_code == 400, path
                assert "send application/json" in response.text, path

    asyncio.run(run())


def test_websockets_need_the_key_and_no_foreign_origin(tmp_path):
    services = services_of(scripted(ANSWER), tmp_path, api_keys=("one",))
    with listening(services) as url:
        address = url.replace("http", "ws", 1) + "/v1/responses"
        key = {"Authorization": "Bearer one"}
        for headers in (key, {**key, "Origin": url}):
            with connect(address, additional_headers=headers):
                pass
        for headers in ({}, {**key, "Origin": "https://a.example"}):
            with (
                pytest.raises(InvalidStatus, match="403"),
                connect(address, additional_headers=headers),
            ):
                pass


def test_large_bodies_are_refused_whether_or_not_they_say_their_size(tmp_path):
    async def pieces():
        for _ in range(100):
            yield b"x" * 100

    async def run():
        services = services_of(scripted(ANSWER), tmp_path, max_body_bytes=1000)
        async with client_of(services) as client:
            json = {"messages": USER, "user": "x" * 2000}
            return [
                await client.post(CHAT, json=json),
                await client.post(
                    CHAT, content=pieces(), headers={"Content-Type": "application/json"}
                ),
                await client.post(CHAT, json={"messages": USER}),
            ]

    told, untold, small = asyncio.run(run())
    for response in (told, untold):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
    assert small.status_code == 200


def test_failures_outside_the_doors_have_the_same_shape(tmp_path):
    for path, status in (("/nowhere", 404), ("/v1/completions", 405)):
        response = get(tmp_path, path)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_no_json_is_a_400(tmp_path):
    async def run(content: bytes) -> httpx.Response:
        async with client_of(services_of(scripted(ANSWER), tmp_path)) as client:
            return await client.post(CHAT, content=content, headers=JSON)

    for content in (b"{", b"\xff", b"[" * 100000, b"null", b"[]", b""):
        assert asyncio.run(run(content)).status_code == 400
