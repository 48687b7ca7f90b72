"""Inspect AI's openai-api provider on a multiple-choice task with nano; prints JSON."""

import json
import sys

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import choice
from inspect_ai.solver import multiple_choice


def main(url):
    """Run it: what matters is that every sample is answered, not how well."""
    model = get_model("openai-api/aperto/nano", base_url=url, api_key="none")
    samples = [Sample(f"What is {n} + 1?", choices=["3", "7"], target="A") for n in (2, 6)]
    task = Task(
        dataset=samples,
        solver=multiple_choice(),
        scorer=choice(),
        config=GenerateConfig(
            max_tokens=200, seed=1, temperature=0.5, top_logprobs=2, logprobs=True, num_choices=1
        ),
    )
    (log,) = eval(task, model=model, display="none", log_dir="logs")
    done = [
        {
            "stop": sample.output.stop_reason,
            "text": sample.output.completion,
            "logprobs": len(sample.output.choices[0].logprobs.content),
            "tokens": sample.output.usage.output_tokens,
        }
        for sample in log.samples
    ]
    print(json.dumps({"status": log.status, "samples": done}))


main(*sys.argv[1:])
