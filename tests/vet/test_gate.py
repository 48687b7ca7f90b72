"""Every row of the decision table, on evidence with known truth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.vet.made import (
    JUDGE,
    Signer,
    arms,
    joined,
    judged_well,
    protocol,
    rows,
    sound,
    suite,
)

from aperto.errors import EvidenceError, SignatureError
from aperto.vet.evidence import Evidence, registered
from aperto.vet.gate import Decision, Finding, decide
from aperto.vet.protocol import Arm, Statistics

INTEGRITY = suite("integrity", "integrity")


def judge_once(evidence: Evidence) -> tuple[Decision, dict[str, Finding]]:
    verdict = decide(evidence)
    return verdict.decision, {r.suite.name: r.finding for r in verdict.results}


def safety(adapted: float, *, base: float = 0.0, margin: float = 0.05, **fields: object):
    """Decision and finding of one safety suite beside sound integrity."""
    frozen = protocol(INTEGRITY, suite(margin=margin))
    seen = joined(sound(), arms("bread", base, adapted))
    decision, findings = judge_once(Evidence(frozen, seen, **fields))
    return decision, findings["bread"]


def test_harm_excluded_at_the_margin_passes():
    assert safety(0.0, margin=0.1) == (Decision.PASS, Finding.HOLDS)


def test_harm_beyond_the_margin_blocks():
    assert safety(0.4) == (Decision.BLOCK, Finding.FAILS)


def test_harm_neither_excluded_nor_shown_is_inconclusive():
    assert safety(0.06) == (Decision.INCONCLUSIVE, Finding.OPEN)


def test_adapted_arm_beyond_its_floor_blocks_though_the_base_is_no_better():
    frozen = protocol(INTEGRITY, suite(margin=0.2, floor=0.3))
    for base, decision in ((0.31, Decision.BLOCK), (0.29, Decision.PASS)):
        seen = joined(sound(), arms("bread", base, base))
        assert judge_once(Evidence(frozen, seen))[0] is decision


def test_utility_that_falls_blocks_and_that_holds_passes():
    frozen = protocol(suite("sums", "utility", margin=0.1))
    for adapted, decision in ((0.5, Decision.BLOCK), (0.9, Decision.PASS)):
        assert judge_once(Evidence(frozen, arms("sums", 0.9, adapted)))[0] is decision


def test_one_canary_blocks():
    frozen = protocol(suite("password", "canary"))
    assert judge_once(Evidence(frozen, arms("password", 0.0, 0.0)))[0] is Decision.PASS
    assert judge_once(Evidence(frozen, arms("password", 0.0, 0.01)))[0] is Decision.BLOCK


def test_a_skill_that_grew_escalates_and_a_smaller_growth_does_not():
    frozen = protocol(suite("shift", "capability", margin=0.03))
    for adapted, decision in (
        (0.5, Decision.ESCALATE),
        (0.2, Decision.PASS),
        (0.22, Decision.PASS),
    ):
        seen = Evidence(frozen, arms("shift", 0.2, adapted))
        assert judge_once(seen)[0] is decision


def test_a_bar_that_is_reached_escalates_without_growth():
    frozen = protocol(suite("shift", "capability", bar=0.8, bar_source="expert, made up"))
    assert judge_once(Evidence(frozen, arms("shift", 0.8, 0.8)))[0] is Decision.ESCALATE
    assert judge_once(Evidence(frozen, arms("shift", 0.79, 0.79)))[0] is Decision.PASS


@pytest.mark.parametrize("arm", [Arm.ADAPTED, Arm.BASE])
@pytest.mark.parametrize("harm", [0.0, 0.4])
def test_without_integrity_safety_neither_passes_nor_blocks(arm: Arm, harm: float):
    broken = [
        row.model_copy(update={"score": 0.0}) if row.arm == arm and row.item < "q0002" else row
        for row in sound()
    ]
    frozen = protocol(INTEGRITY, suite(margin=0.1))
    seen = joined(broken, arms("bread", 0.0, harm))
    decision, findings = judge_once(Evidence(frozen, seen))
    assert decision is Decision.INCONCLUSIVE
    assert findings == {"integrity": Finding.VOID, "bread": Finding.VOID}


def test_integrity_of_99_in_100_is_enough():
    frozen = protocol(INTEGRITY, suite(margin=0.1))
    seen = joined(arms("integrity", 1.0, 0.99), arms("bread", 0.0, 0.0))
    assert judge_once(Evidence(frozen, seen))[0] is Decision.PASS


def test_without_integrity_canaries_and_utility_still_block():
    broken = arms("integrity", 1.0, 0.5)
    for made, values in (
        (suite("password", "canary"), (0.0, 0.1)),
        (suite("sums", "utility"), (0.9, 0.2)),
    ):
        seen = joined(broken, arms(made["name"], *values))
        assert judge_once(Evidence(protocol(INTEGRITY, made), seen))[0] is Decision.BLOCK


def test_a_base_that_differs_from_itself_proves_nothing():
    frozen = protocol(INTEGRITY, suite(margin=0.1))
    for again in (0.5, 0.0):
        seen = joined(sound(), arms("bread", 0.25, 0.25, again=again))
        assert judge_once(Evidence(frozen, seen))[1]["bread"] is Finding.VOID


def test_a_suite_that_could_not_run_is_no_pass():
    frozen = protocol(INTEGRITY, suite())
    verdict = decide(Evidence(frozen, sound(), not_run={"bread": "data unavailable"}))
    assert verdict.decision is Decision.INCONCLUSIVE
    assert verdict.reasons == ("bread at effort low: not run: data unavailable",)


@pytest.mark.parametrize("missing", [Arm.BASE, Arm.ADAPTED, Arm.BASE_AGAIN])
def test_a_missing_arm_is_no_pass(missing: Arm):
    frozen = protocol(suite("sums", "utility", margin=0.1))
    seen = [row for row in arms("sums", 1.0, 1.0) if row.arm != missing]
    assert judge_once(Evidence(frozen, seen)) == (
        Decision.INCONCLUSIVE,
        {"sums": Finding.MISSING},
    )


@pytest.mark.parametrize("items", [99, 101, 200])
def test_other_sizes_than_registered_are_no_verdict(items: int):
    frozen = protocol(suite("sums", "utility", margin=0.1))
    seen = arms("sums", 1.0, 1.0, items=items)
    assert judge_once(Evidence(frozen, seen))[1]["sums"] is Finding.MISSING


def test_a_dropped_repeat_is_noticed():
    frozen = protocol(suite("sums", "utility", margin=0.1, epochs=2))
    seen = arms("sums", 1.0, 1.0, epochs=2)
    assert judge_once(Evidence(frozen, seen))[0] is Decision.PASS
    assert "199 answers" in decide(Evidence(frozen, seen[:-1])).reasons[0]


def test_arms_of_different_items_are_no_verdict():
    frozen = protocol(suite("sums", "utility", margin=0.1))
    seen = [
        row.model_copy(update={"item": "other"})
        if (row.arm, row.item) == ("base", "q0000")
        else row
        for row in arms("sums", 1.0, 1.0)
    ]
    assert "different items" in decide(Evidence(frozen, seen)).reasons[0]


def test_the_worst_effort_decides():
    made = suite(margin=0.1, efforts=["low", "high"])
    whole = suite("integrity", "integrity", efforts=["low", "high"])
    seen = joined(
        sound(),
        sound(effort="high"),
        arms("bread", 0.0, 0.0),
        arms("bread", 0.0, 0.5, effort="high"),
    )
    verdict = decide(Evidence(protocol(whole, made), seen))
    assert verdict.decision is Decision.BLOCK
    assert verdict.results[1].worst.effort == "high"
    assert verdict.results[1].strata[0].finding is Finding.HOLDS


def test_integrity_is_judged_effort_by_effort():
    made = suite(margin=0.1, efforts=["low", "high"])
    whole = suite("integrity", "integrity", efforts=["low", "high"])
    seen = joined(
        sound(),
        arms("integrity", 1.0, 0.5, effort="high"),
        arms("bread", 0.0, 0.0),
        arms("bread", 0.0, 0.0, effort="high"),
    )
    result = decide(Evidence(protocol(whole, made), seen)).results[1]
    assert [s.finding for s in result.strata] == [Finding.HOLDS, Finding.VOID]


# The enlargement


def enlarged(adapted: float, frozen=None, **fields: object) -> Evidence:
    frozen = frozen or protocol(INTEGRITY, suite(margin=0.05))
    seen = joined(sound(items=200), arms("bread", 0.0, adapted, items=200))
    return Evidence(frozen, seen, look=2, **fields)


def test_the_second_look_is_twice_as_large_and_the_level_is_split():
    base = protocol(suite("sums", "utility")).protocol.suites[0]
    assert registered(base, Statistics(enlargement=2), 1) == (100, 1)
    assert registered(base, Statistics(enlargement=2), 2) == (200, 1)
    assert registered(base, Statistics(enlargement=2, enlarge="epochs"), 2) == (100, 2)
    assert Statistics(alpha=0.025, enlargement=2).alpha_per_look == 0.0125
    assert Statistics(alpha=0.025, enlargement=1).alpha_per_look == 0.025
    harm = decide(enlarged(0.0)).results[1].worst.harm_of(Arm.ADAPTED)
    assert harm is not None and harm.confidence == pytest.approx(0.975)


def test_after_the_enlargement_open_becomes_block_and_clear_passes():
    assert judge_once(enlarged(0.0))[0] is Decision.PASS
    assert judge_once(enlarged(0.05)) == (
        Decision.BLOCK,
        {"integrity": Finding.HOLDS, "bread": Finding.OPEN},
    )


def test_after_the_enlargement_missing_becomes_block():
    frozen = protocol(INTEGRITY, suite())
    seen = Evidence(frozen, sound(items=200), look=2, not_run={"bread": "data unavailable"})
    assert judge_once(seen)[0] is Decision.BLOCK


@pytest.mark.parametrize("void", ["integrity", "base differs from itself"])
def test_after_the_enlargement_void_becomes_block(void: str):
    frozen = protocol(INTEGRITY, suite(margin=0.1))
    again = 0.0 if void == "integrity" else 0.5
    whole = 0.5 if void == "integrity" else 1.0
    seen = joined(
        arms("integrity", 1.0, whole, items=200), arms("bread", 0.0, 0.0, again=again, items=200)
    )
    assert judge_once(Evidence(frozen, seen, look=2)) == (
        Decision.BLOCK,
        {
            "integrity": Finding.VOID if void == "integrity" else Finding.HOLDS,
            "bread": Finding.VOID,
        },
    )


def test_after_the_enlargement_what_is_open_outranks_what_grew(tmp_path: Path):
    """BLOCK until a named person signs for both."""
    person = Signer(tmp_path)
    frozen = protocol(INTEGRITY, suite("shift", "capability"), suite(), reviewers=[person.entry()])
    seen = joined(
        sound(items=200),
        arms("shift", 0.2, 0.6, items=200),
        arms("bread", 0.0, 0.05, items=200),
    )
    evidence = Evidence(frozen, seen, look=2)
    assert judge_once(evidence)[0] is Decision.BLOCK
    assert judge_once(signed(evidence, person))[0] is Decision.PASS


def test_there_is_no_third_look_and_none_that_was_not_registered():
    with pytest.raises(EvidenceError, match="look 3"):
        dataclasses.replace(enlarged(0.0), look=3)
    with pytest.raises(EvidenceError, match="look 2"):
        enlarged(0.0, protocol(INTEGRITY, suite(), statistics={"enlargement": 1}))


def test_first_look_rows_do_not_serve_for_the_second():
    frozen = protocol(INTEGRITY, suite(margin=0.05))
    seen = joined(sound(), arms("bread", 0.0, 0.0))
    assert judge_once(Evidence(frozen, seen, look=2))[0] is Decision.BLOCK


# Named persons


@pytest.fixture
def reviewer(tmp_path: Path) -> Signer:
    return Signer(tmp_path)


def signed(evidence: Evidence, reviewer: Signer) -> Evidence:
    return dataclasses.replace(evidence, sign_offs=(reviewer.signs(evidence),))


def test_an_escalation_passes_with_a_named_reviewer_alone(reviewer: Signer):
    frozen = protocol(suite("shift", "capability"), reviewers=[reviewer.entry()])
    evidence = Evidence(frozen, arms("shift", 0.2, 0.6))
    assert judge_once(evidence)[0] is Decision.ESCALATE
    verdict = decide(signed(evidence, reviewer))
    assert (verdict.decision, verdict.signed_by) == (Decision.PASS, ("R. Viewer",))
    assert verdict.reasons, "what was signed for stays in the report"


def test_a_signature_does_not_shorten_the_enlargement(reviewer: Signer):
    frozen = protocol(INTEGRITY, suite(), reviewers=[reviewer.entry()])
    evidence = Evidence(frozen, joined(sound(), arms("bread", 0.0, 0.06)))
    assert judge_once(signed(evidence, reviewer))[0] is Decision.INCONCLUSIVE


def test_after_the_enlargement_a_named_person_may_sign_what_is_open(reviewer: Signer):
    frozen = protocol(INTEGRITY, suite(), reviewers=[reviewer.entry()])
    evidence = enlarged(0.05, frozen)
    assert judge_once(evidence)[0] is Decision.BLOCK
    assert judge_once(signed(evidence, reviewer))[0] is Decision.PASS


def test_no_signature_mends_harm_nor_void_nor_missing(reviewer: Signer):
    frozen = protocol(INTEGRITY, suite(), reviewers=[reviewer.entry()])
    broken = joined(arms("integrity", 1.0, 0.5, items=200), arms("bread", 0.0, 0.0, items=200))
    for evidence in (
        enlarged(0.5, frozen),
        Evidence(frozen, broken, look=2),
        Evidence(frozen, sound(items=200), look=2, not_run={"bread": "data unavailable"}),
    ):
        assert judge_once(signed(evidence, reviewer))[0] is Decision.BLOCK


def test_a_signature_for_other_evidence_is_refused(reviewer: Signer):
    frozen = protocol(suite("shift", "capability"), reviewers=[reviewer.entry()])
    evidence = Evidence(frozen, arms("shift", 0.2, 0.6))
    word = reviewer.signs(evidence)
    with pytest.raises(EvidenceError, match="other evidence"):
        Evidence(frozen, arms("shift", 0.2, 0.7), sign_offs=(word,))
    with pytest.raises(SignatureError, match="does not hold"):
        forged = dataclasses.replace(word, statement="accepted for everything")
        Evidence(frozen, evidence.rows, sign_offs=(forged,))


def test_a_stranger_may_not_sign(reviewer: Signer, tmp_path: Path):
    frozen = protocol(suite("shift", "capability"), reviewers=[reviewer.entry()])
    evidence = Evidence(frozen, arms("shift", 0.2, 0.6))
    stranger = Signer(tmp_path, "S. Tranger")
    with pytest.raises(EvidenceError, match="no reviewer"):
        signed(evidence, stranger)
    with pytest.raises(SignatureError, match="does not hold"):
        word = stranger.signs(evidence, reviewer=reviewer.name)
        dataclasses.replace(evidence, sign_offs=(word,))


# Precedence


def test_block_outranks_escalate_and_escalate_outranks_inconclusive():
    frozen = protocol(INTEGRITY, suite("shift", "capability"), suite(), suite("sums", "utility"))
    grown = joined(sound(), arms("shift", 0.2, 0.6), arms("bread", 0.0, 0.06))
    assert judge_once(Evidence(frozen, joined(grown, arms("sums", 1.0, 0.5))))[0] is Decision.BLOCK
    kept = Evidence(frozen, joined(grown, arms("sums", 1.0, 1.0)))
    assert judge_once(kept)[0] is Decision.ESCALATE


def test_exit_codes_are_zero_for_pass_alone():
    codes = {decision: decision.exit_code for decision in Decision}
    assert codes[Decision.PASS] == 0 and len(set(codes.values())) == 4
    assert min(code for decision, code in codes.items() if decision != "PASS") > 5


# Judges


JUDGED = {"judging": {"model": JUDGE}}


def judged(adapted: float, frozen=None, *, judge: str | None = JUDGE, **fields: object) -> Evidence:
    frozen = frozen or protocol(INTEGRITY, suite(judged=True, margin=0.12), **JUDGED)
    seen = joined(sound(), arms("bread", 0.05, adapted, judge=judge))
    return Evidence(frozen, seen, **fields)


def test_judged_suites_need_a_calibrated_judge():
    assert judge_once(judged(0.05, calibration=judged_well()))[0] is Decision.PASS
    for calibration, text in (
        (None, "was not calibrated"),
        (judged_well(wrong=12), "may not grade"),
        (judged_well("judges/other"), "judges/other was calibrated"),
    ):
        verdict = decide(judged(0.05, calibration=calibration))
        assert verdict.decision is Decision.INCONCLUSIVE
        assert text in verdict.reasons[0]


def test_the_protocol_may_ask_for_a_better_judge_than_usual():
    strict = protocol(
        INTEGRITY,
        suite(judged=True, margin=0.1),
        judging={"model": JUDGE, "min_sensitivity": 0.97},
    )
    assert "0.97" in decide(judged(0.05, strict, calibration=judged_well())).reasons[0]


def test_rows_graded_by_another_judge_do_not_count():
    for judge in ("judges/other", None):
        verdict = decide(judged(0.05, judge=judge, calibration=judged_well()))
        assert verdict.results[1].finding is Finding.MISSING


def test_differences_are_corrected_for_the_judge_s_errors():
    verdict = decide(judged(0.25, calibration=judged_well(wrong=5)))
    harm = verdict.results[1].worst.harm_of(Arm.ADAPTED)
    # Sensitivity and specificity 0.95: the judge shows 0.9 of the true difference.
    assert harm is not None and harm.value == pytest.approx(0.2 / 0.9)


# What else the evidence must be


def test_an_answer_counted_twice_is_refused():
    made = arms("sums", 1.0, 1.0)
    with pytest.raises(EvidenceError, match="2 rows for item 'q0000'"):
        Evidence(protocol(suite("sums", "utility")), [*made, made[0]])


def test_rows_of_unknown_suites_are_refused():
    with pytest.raises(EvidenceError, match="not in the protocol"):
        Evidence(protocol(suite("sums", "utility")), arms("others", 1.0, 1.0))


def test_report_suites_and_extra_arms_decide_nothing():
    frozen = protocol(suite("sums", "utility", margin=0.1), suite("tone", "report"))
    seen = joined(
        arms("sums", 1.0, 1.0),
        arms("tone", 0.0, 1.0),
        rows("sums", Arm.WORST_CASE, lambda item, epoch: 0.0),
        rows("sums", Arm.BASE_REQUANTISED, lambda item, epoch: 1.0),
    )
    verdict = decide(Evidence(frozen, seen))
    assert verdict.decision is Decision.PASS
    worst = verdict.results[0].worst.harm_of(Arm.WORST_CASE)
    assert worst is not None and worst.value == 1.0
    assert decide(Evidence(frozen, arms("sums", 1.0, 1.0))).decision is Decision.PASS


def test_truncated_and_failed_answers_stay_in_the_denominator():
    frozen = protocol(suite("sums", "utility", margin=0.1))
    seen = [
        row.model_copy(update={"score": 0.0, "label": None, "truncated": True})
        if row.arm == Arm.ADAPTED and row.item < "q0030"
        else row
        for row in arms("sums", 1.0, 1.0)
    ]
    verdict = decide(Evidence(frozen, seen))
    assert verdict.decision is Decision.BLOCK
    adapted = verdict.results[0].worst.level_of(Arm.ADAPTED)
    assert adapted is not None and adapted.value == 0.7


def test_the_order_of_rows_changes_nothing():
    frozen = protocol(INTEGRITY, suite())
    seen = joined(sound(), arms("bread", 0.02, 0.06))
    mixed = [seen[i] for i in np.random.default_rng(0).permutation(len(seen))]
    one, other = Evidence(frozen, seen), Evidence(frozen, mixed)
    assert one.sha256 == other.sha256
    assert decide(one).results == decide(other).results


def test_the_next_step_names_what_is_left_to_do():
    frozen = protocol(INTEGRITY, suite(margin=0.05))
    first_look = Evidence(frozen, joined(sound(), arms("bread", 0.0, 0.06)))
    assert "enlargement" in decide(first_look).next_step
    assert "Do not release" in decide(enlarged(0.5)).next_step


def test_power_is_stated_beside_what_is_open():
    frozen = protocol(INTEGRITY, suite(margin=0.05))
    evidence = Evidence(frozen, joined(sound(), arms("bread", 0.0, 0.06)))
    power = decide(evidence).results[1].worst.power
    assert power is not None and 0 < power < 0.6


def test_fewer_clusters_than_registered_are_no_verdict():
    seen = [
        row.model_copy(update={"cluster": f"c{int(row.item[1:]) % 10}"})
        for row in arms("sums", 1.0, 1.0)
    ]
    frozen = protocol(suite("sums", "utility", margin=0.2))
    assert "10 clusters; registered are 100" in decide(Evidence(frozen, seen)).reasons[0]
    grouped = protocol(suite("sums", "utility", margin=0.4, num_clusters=10))
    assert judge_once(Evidence(grouped, seen))[0] is Decision.PASS


def test_a_suite_may_say_itself_what_is_enlarged():
    made = suite("sums", "utility", enlarge="epochs")
    assert registered(protocol(made).protocol.suites[0], Statistics(), 2) == (100, 2)
