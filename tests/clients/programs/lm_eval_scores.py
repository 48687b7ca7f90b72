"""lm-eval's local-completions on a few texts; prints their log-likelihoods as JSON."""

import json
import sys

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

PAIRS = [
    ("What is 2 + 2?", " It is 4."),
    ("What is 2 + 2?", " It is 5."),
    ("The capital of Norway is", " Oslo"),
    ("Grüße aus", " 東京"),
]


def instances(kind, arguments):
    """Requests as tasks make them."""
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def main(url, batch):
    """Score pairs, a rolling text, and continue one."""
    model = LocalCompletionsAPI(
        base_url=f"{url}/completions",
        model="nano",
        tokenizer_backend="remote",
        batch_size=int(batch),
        num_concurrent=1,
        max_length=2048,
        max_retries=1,
    )
    rolling = [("Bread needs flour, water, salt and time.",)]
    asked = ("What is 2 + 2?", {"until": ["\n"], "max_gen_toks": 8})
    found = {
        "scores": model.loglikelihood(instances("loglikelihood", PAIRS)),
        "rolling": model.loglikelihood_rolling(instances("loglikelihood_rolling", rolling)),
        "texts": model.generate_until(instances("generate_until", [asked])),
    }
    found["prefix"] = model.prefix_token_id
    print(json.dumps(found))


main(*sys.argv[1:])
