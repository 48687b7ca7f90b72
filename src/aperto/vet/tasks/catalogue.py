"""The capability suites there are."""

from __future__ import annotations

from aperto.vet.sources import Data
from aperto.vet.suites.item import Item
from aperto.vet.tasks import bfcl, humaneval, snowball
from aperto.vet.tasks.suite import Suite


def _humaneval(data: Data | None) -> tuple[Item, ...]:
    assert data is not None
    return humaneval.load(data.path)


def _bfcl(data: Data | None) -> tuple[Item, ...]:
    assert data is not None
    return bfcl.load(data.paths["simple_python.json"], data.paths["simple_python_answers.json"])


def _snowball(data: Data | None) -> tuple[Item, ...]:
    assert data is not None
    return snowball.load(data.paths)


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="humaneval",
            summary="Python functions, run against their tests in the sandbox",
            prompt_id=humaneval.PROMPT_ID,
            source="humaneval",
            load=_humaneval,
            grade=humaneval.grade,
            num_items=164,
            epochs=5,
        ),
        Suite(
            name="bfcl_simple",
            summary="one function call with the right arguments",
            prompt_id=bfcl.PROMPT_ID,
            source="bfcl",
            load=_bfcl,
            grade=bfcl.grade,
            num_items=400,
        ),
        Suite(
            name="snowball",
            summary="false claims where the true answer is known",
            prompt_id=snowball.PROMPT_ID,
            source="snowball",
            load=_snowball,
            grade=snowball.grade,
            num_items=1500,
            kind="behaviour",
        ),
    )
}
"""By name; others may add theirs."""
