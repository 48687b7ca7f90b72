"""`aperto reinforce`, from prompts and a reward function to an adapter that is served."""

import json


def test_writes_an_adapter_and_goes_on_with_it(aperto, tmp_path):
    tasks, reward, out = tmp_path / "tasks.jsonl", tmp_path / "reward.py", tmp_path / "out"
    rows = [{"messages": [{"role": "user", "content": f"What is {n} + 2?"}]} for n in range(4)]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward.write_text("def reward(task, answer):\n    return -answer.num_tokens\n")
    command = ("reinforce", "nano", str(tasks), "--reward", str(reward), "--out", str(out),
               "--steps", "2", "--tasks-per-step", "2", "--attempts", "3", "--max-tokens", "24",
               "--rank", "2")  # fmt: skip
    result = aperto(*command)
    assert result.exit_code == 0, result.output
    for word in ("4 tasks; 2 steps", "step 2/2: loss ", "reward ", "gap ", "vetted: no"):
        assert word in result.output
    gaps = [json.loads(line)["measures"]["largest gap"]
            for line in (out / "run" / "log.jsonl").read_text().splitlines()]  # fmt: skip
    # Twin and engine hold the same weights in float32, but the engine's keys and values are
    # stored as f16: half a unit of 2^-11 each.
    assert max(gaps) < 0.05
    assert "resumed after step 2" in aperto(*command).output
    ask = ("-p", "What is 3 + 2?", "--max-tokens", "4")
    assert aperto("chat", "nano", "--adapter", str(out), *ask).exit_code == 0


def test_a_file_without_a_reward(aperto, tmp_path):
    tasks, reward = tmp_path / "tasks.jsonl", tmp_path / "reward.py"
    tasks.write_text('{"messages": [{"role": "user", "content": "Bread?"}]}\n')
    command = (
        "reinforce",
        "nano",
        str(tasks),
        "--reward",
        str(reward),
        "--out",
        str(tmp_path / "o"),
    )
    assert "no such file" in aperto(*command).output
    reward.write_text("x = 1\n")
    assert "found no function named reward" in aperto(*command).output
    reward.write_text("x = 1 / 0\n")
    result = aperto(*command)
    assert result.exit_code == 2 and "ZeroDivisionError" in result.output
