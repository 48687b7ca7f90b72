"""The capability suites there are."""

from __future__ import annotations

from collections.abc import Callable

from aperto.vet.sources import Data
from aperto.vet.suites.item import Item
from aperto.vet.tasks import aime, bfcl, choice, humaneval, ifbench, snowball
from aperto.vet.tasks.suite import Suite


def _humaneval(data: Data | None) -> tuple[Item, ...]:
    assert data is not None
    return humaneval.load(data.path)


def _bfcl(data: Data | None) -> tuple[Item, ...]:
    assert data is not None
    return bfcl.load(data.paths["simple_python.json"], data.paths["simple_python_answers.json"])


def _ifbench(data: Data | None) -> tuple[Item, ...]:
    assert data is not None
    return ifbench.load(data.path)


def _snowball(data: Data | None) -> tuple[Item, ...]:
    assert data is not None
    return snowball.load(data.paths)


def _gpqa(data: Data | None) -> tuple[Item, ...]:
    assert data is not None
    return choice.load_gpqa(data.path)


def _mmlu(data: Data | None) -> tuple[Item, ...]:
    assert data is not None
    return choice.load_mmlu(data.path)


def _aime(suite: str) -> Callable[[Data | None], tuple[Item, ...]]:
    def load(data: Data | None) -> tuple[Item, ...]:
        assert data is not None
        return aime.load(data.path, suite)

    return load


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        *(
            Suite(
                name=f"aime{year}",
                summary=f"AIME {year}, whole-number answers, without tools",
                prompt_id=aime.PROMPT_ID,
                source=f"aime{year}",
                load=_aime(f"aime{year}"),
                grade=aime.grade,
                num_items=30,
                epochs=8,
                published=f"aime{year}",
            )
            for year in (2024, 2025)
        ),
        Suite(
            name="gpqa_diamond",
            summary="graduate questions of science, four options in a drawn order",
            prompt_id=choice.PROMPT_ID,
            source="gpqa_diamond",
            load=_gpqa,
            grade=choice.grade,
            num_items=198,
            epochs=8,
            published="gpqa_diamond",
        ),
        Suite(
            name="mmlu",
            summary="57 subjects, four options",
            prompt_id=choice.PROMPT_ID,
            source="mmlu",
            load=_mmlu,
            grade=choice.grade,
            num_items=14_042,
            published="mmlu",
        ),
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
            name="ifbench",
            summary="instructions that can be checked by rule, loosely, as its authors report",
            prompt_id=ifbench.PROMPT_ID,
            source="ifbench",
            load=_ifbench,
            grade=ifbench.grade,
            num_items=294,
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
