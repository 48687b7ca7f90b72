from types import SimpleNamespace

import pytest
from tests.server.responses_kit import WEATHER

from aperto.harmony import BROWSER, PYTHON, CallRule, Lark, Regex, TurnRules
from aperto.server.errors import ApiError
from aperto.server.response_tools import Choice, ToolTable, custom_input, served_types

HOSTED = [
    {"type": kind}
    for kind in ("web_search", "image_generation", "file_search", "mcp", "local_shell", "computer")
]
CUSTOM = {
    "type": "custom",
    "name": "apply_patch",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"},
}
SPACE = {"type": "namespace", "name": "mcp__mail__", "tools": [WEATHER, {"type": "web_search"}]}


def test_all_that_codex_sends_is_taken_and_what_cannot_be_served_is_named():
    table = ToolTable([WEATHER, CUSTOM, SPACE, *HOSTED])
    assert [f.name for f in table.functions] == [
        "get_weather",
        "apply_patch",
        "mcp__mail__get_weather",
    ]
    assert len(table.warnings) == len(HOSTED) + 1  # the search inside
    assert [tool["type"] for tool in table.echo] == ["function", "custom", "namespace"]
    assert len(table.echo[2]["tools"]) == 1
    TurnRules(calls=table.calls)


def test_a_tool_in_the_form_of_chat_completions_is_taken():
    nested = {k: v for k, v in WEATHER.items() if k != "type"}
    table = ToolTable([{"type": "function", "function": nested}])
    assert table.functions == ToolTable([WEATHER]).functions


def test_a_second_tool_of_a_name_and_nameless_ones_are_left_out():
    table = ToolTable([WEATHER, WEATHER, {"type": "function"}, {"type": "function", "name": 3}])
    assert len(table) == 1
    assert len(table.warnings) == 3


def test_names_that_no_header_can_hold_are_changed_and_changed_back():
    table = ToolTable([WEATHER | {"name": "get weather!"}])
    (function,) = table.functions
    assert function.name == "get_weather_"
    assert table.of("functions.get_weather_").name == "get weather!"
    assert table.recipient("get weather!") == "functions.get_weather_"


def test_a_recipient_that_was_made_up_is_a_function():
    made_up = ToolTable([]).of("functions.nothing")
    assert (made_up.kind, made_up.name) == ("function", "nothing")


def test_strict_only_where_asked_for():
    loose, strict = ToolTable([WEATHER, WEATHER | {"name": "b", "strict": True}]).calls
    assert (loose.strict, strict.strict) == (False, True)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None)),
        ("none", ("none", None)),
        ("required", ("required", None)),
        ({"type": "function", "name": "get_weather"}, ("required", ("functions.get_weather",))),
        ({"type": "custom", "name": "apply_patch"}, ("required", ("functions.apply_patch",))),
        ({"type": "web_search"}, ("auto", None)),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "get_weather"}, {"type": "web_search"}],
            },
            ("required", ("functions.get_weather",)),
        ),
        ({"type": "allowed_tools", "tools": [{"type": "web_search"}]}, ("none", None)),
    ],
)
def test_choices(choice, expected):
    table = ToolTable([WEATHER, CUSTOM, {"type": "web_search"}])
    assert table.choice(choice) == Choice(*expected)
    rules = table.choice(choice).rules(TurnRules(calls=table.calls), ())
    assert (rules.tool_choice, rules.allowed) == expected


@pytest.mark.parametrize("choice", ["any", {"type": "function", "name": "nothing"}])
def test_a_choice_of_what_is_not_there_is_a_400(choice):
    with pytest.raises(ApiError) as caught:
        ToolTable([WEATHER]).choice(choice)
    assert (caught.value.status, caught.value.param) == (400, "tool_choice")


def test_a_call_cannot_be_required_where_there_is_nothing_to_call():
    table = ToolTable([{"type": "web_search"}])
    assert table.choice("required") == Choice("auto")
    assert len(table.warnings) == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [('{"input": "x"}', "x"), ("plain", "plain"), ("[1]", "[1]"), ('{"input": 1}', '{"input": 1}')],
)
def test_the_input_of_a_custom_call(arguments, text):
    assert custom_input(arguments) == text


def test_tools_of_the_server_are_asked_for_by_type():
    served = ("python", "mcp:one", "mcp:two")
    assert served_types(served) == ("mcp", "code_interpreter")
    table = ToolTable([{"type": "mcp", "server_label": "any"}, {"type": "web_search"}], served)
    assert table.wanted == ["mcp:one", "mcp:two"]
    assert [tool["type"] for tool in table.echo] == ["mcp"]
    assert len(table.warnings) == 1


CODE = {"type": "code_interpreter", "container": {"type": "auto"}}
SEARCH = {"type": "web_search"}


@pytest.mark.parametrize(
    ("choice", "mode", "allowed"),
    [
        ("required", "required", None),
        ("none", "none", None),
        ({"type": "code_interpreter"}, "required", {"python"}),
        ({"type": "function", "name": "get_weather"}, "required", {"functions.get_weather"}),
        (
            {
                "type": "allowed_tools",
                "tools": [{"type": "function", "name": "get_weather"}, SEARCH],
            },
            "auto",
            {"functions.get_weather", "browser.search", "browser.open", "browser.find"},
        ),
        ({"type": "allowed_tools", "mode": "required", "tools": [CODE]}, "required", {"python"}),
    ],
)
def test_choices_among_tools_of_the_server(choice, mode, allowed):
    table = ToolTable([WEATHER, CODE, SEARCH], ("python", "browser:docs"))
    tools = [
        SimpleNamespace(name=space.name, namespace=space, functions=())
        for space in (PYTHON, BROWSER)
    ]
    rules = table.choice(choice).rules(TurnRules(calls=table.calls), tools)
    assert (rules.tool_choice, rules.allowed and set(rules.allowed)) == (mode, allowed)
    assert len(rules.calls) == 1 + 1 + 3
    assert table.warnings == []


def test_no_mcp_server_of_the_client_is_called():
    table = ToolTable([{"type": "mcp", "server_url": "http://10.0.0.1/"}], ("mcp:one",))
    assert (table.wanted, len(table.warnings)) == ([], 1)


@pytest.mark.parametrize(
    ("syntax", "form"), [("regex", Regex("[a-z]+|[0-9]+")), ("lark", Lark("start: /x/"))]
)
def test_input_of_a_custom_tool_is_held_to_its_grammar(syntax, form):
    definition = form.pattern if syntax == "regex" else form.grammar
    shape = {"type": "grammar", "syntax": syntax, "definition": definition}
    for given in (shape, {"type": "grammar", "grammar": shape}):
        table = ToolTable([{"type": "custom", "name": "word", "format": given}])
        assert table.calls == (CallRule(recipient="functions.word", text=form),)
        assert definition in table.functions[0].description
        assert table.warnings == []


def test_a_format_that_cannot_be_read_is_said():
    shape = {"type": "grammar", "syntax": "ebnf", "definition": "x"}
    table = ToolTable([{"type": "custom", "name": "word", "format": shape}])
    assert table.calls[0].parameters["required"] == ["input"]
    assert len(table.warnings) == 1
