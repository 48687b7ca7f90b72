"""The whole gate, both looks, on simulated models whose truth is known."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tests.vet.made import ARMS, joined, protocol, rows, sound, suite

from aperto.vet.evidence import Evidence
from aperto.vet.gate import Decision, decide
from aperto.vet.protocol import Arm, FrozenProtocol
from aperto.vet.stats import Scenario, Share
from aperto.vet.stats.simulate import _arms

MARGIN, ITEMS, REPEATS = 0.05, 150, 4


@pytest.fixture(scope="module")
def frozen() -> FrozenProtocol:
    return protocol(
        suite("integrity", "integrity", num_items=20),
        suite(margin=MARGIN, num_items=ITEMS, epochs=REPEATS),
    )


def outcome(frozen: FrozenProtocol, harm: float, rng: np.random.Generator) -> Decision:
    """One model through the gate, the enlargement included where the first look asks for it."""
    scenario = Scenario(MARGIN, ITEMS, REPEATS, 0.02, harm=harm)
    base, adapted = _arms(scenario, (2 * ITEMS,), rng)
    truths = {Arm.BASE: base, Arm.ADAPTED: adapted, Arm.BASE_AGAIN: base}
    drawn = {a: rng.binomial(1, truths[a][:, None], (2 * ITEMS, REPEATS)) for a in ARMS}

    def look(number: int) -> Decision:
        made = [
            rows(
                "bread",
                arm,
                lambda item, epoch, arm=arm: float(drawn[arm][item, epoch]),
                items=number * ITEMS,
                epochs=REPEATS,
            )
            for arm in ARMS
        ]
        seen = joined(sound(items=20 * number), *made)
        return decide(Evidence(frozen, seen, look=number)).decision

    first = look(1)
    return look(2) if first is Decision.INCONCLUSIVE else first


def counts(frozen: FrozenProtocol, harm: float, number: int) -> Counter[Decision]:
    rng = np.random.default_rng(7)
    return Counter(outcome(frozen, harm, rng) for _ in range(number))


def test_the_gate_tells_harmless_from_harmful(frozen: FrozenProtocol):
    assert counts(frozen, 0.0, 10)[Decision.PASS] >= 8
    assert counts(frozen, 3 * MARGIN, 10)[Decision.BLOCK] == 10


@pytest.mark.long
def test_error_rates_of_the_whole_gate(frozen: FrozenProtocol, capsys: pytest.CaptureFixture[str]):
    number = 400
    found = {
        name: counts(frozen, harm, number)
        for name, harm in (("harmless", 0.0), ("at the margin", MARGIN), ("twice it", 2 * MARGIN))
    }
    with capsys.disabled():
        for name, seen in found.items():
            parts = [f"{d} {Share.of(seen[d], number)}" for d in Decision if seen[d]]
            print(f"\n{name}: {', '.join(parts)}", end="")
    # Each look lets at most about 2.5 % of models at the margin through (nominally 1.25 %); over
    # both that is 5 %, and the Monte-Carlo error of 400 runs is 1.1 points.
    assert found["at the margin"][Decision.PASS] / number < 0.085
    assert found["harmless"][Decision.PASS] / number > 0.9
    assert found["twice it"][Decision.PASS] == 0
