"""lm-eval's local-completions against nano: log-likelihoods are those that the server tells."""

from __future__ import annotations

import json

import httpx
import pytest
from tests.clients.environments import client_env
from tests.clients.kit import nano, offline, run, run_program

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

PAIRS = [
    ("What is 2 + 2?", " It is 4."),
    ("What is 2 + 2?", " It is 5."),
    ("The capital of Norway is", " Oslo"),
    ("Grüße aus", " 東京"),
]
ROLLING = "Bread needs flour, water, salt and time."
SUMS = [("1 + 1 =", ["2", "3"]), ("2 + 3 =", ["4", "5"]), ("4 + 3 =", ["7", "8"])]
TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def python():
    return client_env("lmeval")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with nano(tmp_path_factory.mktemp("state")) as address:
        yield address


def ids(url, text):
    return httpx.post(f"{url}/tokenize", json={"prompt": text}).json()["tokens"]


def echoed(url, tokens):
    body = {"model": "nano", "prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 1}
    (choice,) = httpx.post(f"{url}/v1/completions", json=body).json()["choices"]
    return choice["logprobs"]["token_logprobs"]


@pytest.mark.parametrize("batch", ["1", "4"])
def test_log_likelihoods_are_sums_of_what_the_server_tells(python, url, tmp_path, batch):
    found = run_program(python, "lm_eval_scores.py", url, tmp_path, arguments=(batch,))
    for (context, rest), (score, is_greedy) in zip(PAIRS, found["scores"], strict=True):
        whole, first = ids(url, context + rest), ids(url, context)
        assert whole[: len(first)] == first  # else the harness cuts elsewhere
        assert score == sum(echoed(url, whole)[len(first) :])
        assert is_greedy is False
    start = ids(url, "<|startoftext|>")
    assert [found["prefix"]] == start
    assert found["rolling"] == [sum(echoed(url, start + ids(url, ROLLING))[1:])]
    assert found["texts"][0] and "\n" not in found["texts"][0]


def test_a_multiple_choice_task_from_the_command_line(python, url, tmp_path):
    data = tmp_path / "sums.jsonl"
    rows = [{"question": q, "choices": c, "answer": 0} for q, c in SUMS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(TASK.format(data=data))
    settings = f"model=nano,base_url={url}/v1/completions,num_concurrent=2"
    command = [str(python.parent / "lm_eval"), "run", "--model", "local-completions"]
    command += ["--model_args", settings, "--tasks", "sums", "--include_path", str(tmp_path)]
    command += ["--output_path", str(tmp_path / "found"), "--log_samples"]
    run(command, offline(tmp_path / "home", HF_HUB_OFFLINE="1"), tmp_path)
    (samples,) = (tmp_path / "found").rglob("samples_*.jsonl")
    told = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(told) == len(SUMS)
    for sample in told:
        question = sample["doc"]["question"]
        first = ids(url, question)
        for choice, (answer,) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            score = sum(echoed(url, ids(url, f"{question} {choice}"))[len(first) :])
            assert float(answer[0]) == score
