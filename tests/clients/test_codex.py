"""The Codex CLI edits a file by a script of harmony; it comes from npm."""

from __future__ import annotations

import json

import httpx
import pytest
from tests.clients.environments import codex_binary
from tests.clients.kit import calls, offline, replaying, run, says, thinks

from aperto.errors import ContextLengthError

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

PATCH = """\
*** Begin Patch
*** Update File: bread.txt
@@
-salt: 10 g
+salt: 12 g
*** End Patch
"""
READ = thinks("Did it work?") + calls("exec_command", cmd="cat bread.txt")
DONE = says("The salt is 12 g now.")
CONFIG = """\
model = "scripted"
model_provider = "aperto"
model_catalog_json = "{catalog}"
check_for_update_on_startup = false

[model_providers.aperto]
name = "aperto"
base_url = "{url}/v1"
wire_api = "responses"

[analytics]
enabled = false
"""


@pytest.fixture(scope="module")
def codex():
    return str(codex_binary())


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "bread.txt").write_text("flour: 500 g\nsalt: 10 g\n")
    return folder


def execute(codex, url, project, *options):
    """The events of `codex exec --json`, with the catalogue that the server gives."""
    home = project.parent / "home"
    home.mkdir()
    catalog = home / "aperto.json"
    catalog.write_bytes(httpx.get(f"{url}/v1/models").content)
    (home / "config.toml").write_text(CONFIG.format(catalog=catalog, url=url))
    words = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    env = offline(home, CODEX_HOME=str(home))
    printed = run([codex, "exec", *words, *options, "Set the salt to 12 g."], env, project)
    return [json.loads(line) for line in printed.splitlines()]


def items(events):
    return [event["item"] for event in events if event["type"] == "item.completed"]


def test_a_patch_is_applied_and_looked_at(codex, project, tmp_path):
    header = "<|channel|>commentary to=functions.apply_patch<|message|>"
    patch = thinks("One line changes.") + f"{header}{PATCH}<|call|>"
    with replaying(tmp_path, patch, READ, DONE) as (url, chat):
        events = execute(codex, url, project)
        shown = chat.prompt_text(2)
    assert (project / "bread.txt").read_text() == "flour: 500 g\nsalt: 12 g\n"
    change, command, message = items(events)
    assert (change["type"], change["status"]) == ("file_change", "completed")
    assert (command["exit_code"], command["aggregated_output"]) == (0, "flour: 500 g\nsalt: 12 g\n")
    assert message["text"] == "The salt is 12 g now."
    assert len(chat.asked) == 3
    # What the model is shown in the end: both thoughts, both calls, and what came of them.
    assert "One line changes.<|end|>" in shown
    assert "Did it work?<|end|>" in shown
    assert "<|start|>functions.apply_patch to=assistant<|channel|>commentary" in shown
    assert "flour: 500 g\nsalt: 12 g\n" in shown
    (ended,) = [event for event in events if event["type"] == "turn.completed"]
    assert ended["usage"]["cached_input_tokens"] == 3 * 8
    assert ended["usage"]["reasoning_output_tokens"] > 0


def test_the_catalogue_is_taken_without_complaint(codex, project, tmp_path):
    with replaying(tmp_path, DONE) as (url, chat):
        events = execute(codex, url, project)
        shown = chat.prompt_text()
    assert [item["type"] for item in items(events)] == ["agent_message"]
    assert "You are a coding agent in a terminal" in shown
    assert "// Called with plain text, not JSON, of this Lark grammar:" in shown
    assert "type apply_patch = () => any;" in shown


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(" to=functions.exec_command<|channel|>commentary json", id="role first"),
        pytest.param("<|channel|>analysis to=functions.exec_command code", id="on analysis"),
        pytest.param(
            "<|channel|>commentary to=functions.exec_command<|channel|>commentary",
            id="channel twice",
        ),
    ],
)
def test_a_malformed_header_costs_nothing(codex, project, tmp_path, header):
    command = json.dumps({"cmd": "sed -i 's/10 g/12 g/' bread.txt"})
    slip = f"{header}<|message|>{command}<|call|>"
    with replaying(tmp_path, slip, READ, DONE) as (url, _):
        events = execute(codex, url, project)
    assert (project / "bread.txt").read_text() == "flour: 500 g\nsalt: 12 g\n"
    assert [item["type"] for item in items(events)] == ["command_execution"] * 2 + ["agent_message"]


def test_an_answer_by_schema(codex, project, tmp_path):
    schema = tmp_path / "schema.json"
    salt = {"salt_g": {"type": "integer"}}
    shape = {"type": "object", "properties": salt, "required": ["salt_g"]}
    schema.write_text(json.dumps({**shape, "additionalProperties": False}))
    with replaying(tmp_path, says('{"salt_g": 12}')) as (url, chat):
        events = execute(codex, url, project, "--output-schema", str(schema))
    assert json.loads(items(events)[-1]["text"]) == {"salt_g": 12}
    assert chat.asked[0][1].rules.answer is not None


def test_a_context_that_is_too_long_is_told_as_such(codex, project, tmp_path):
    full = ContextLengthError("the prompt has 50000 tokens; 40000 fit")
    with (
        replaying(tmp_path, *[full] * 8) as (url, _),
        pytest.raises(AssertionError) as caught,
    ):
        execute(codex, url, project)
    assert "ran out of room in the model's context window" in str(caught.value)
