"""Which figures may be claimed, and what the others lack."""

from __future__ import annotations

import dataclasses

from frontier_test import (
    PLAN,
    THREAT,
    VERDICTS,
    find,
    outcome,
    outcomes,
    rows,
)


def test_what_was_left_out_is_an_empty_row_and_takes_headlines_on_attacks():
    found = rows(plan=dataclasses.replace(PLAN, left_out={'paraphrase': 'no model follows instructions'}))
    assert find(found, 'damage_attacked', attack='paraphrase').reason == 'not run: no model follows instructions'
    assert find(found, 'damage').headline
    row = find(found, 'damage_adaptive')
    assert not row.headline
    assert 'never run: paraphrase' in row.reason


def test_the_worst_attacks_were_run_on_the_family_of_a_headline():
    other = [dataclasses.replace(o, student='biased') for o in outcomes() if o.attack != 'prefill']
    both = rows([*outcomes(), *other])
    found = {row.student: row for row in both if (row.figure, row.arm) == ('damage_adaptive', 'ads')}
    assert found['wide'].headline
    assert not found['biased'].headline
    assert 'not run on this family: prefill, which leave the least' in found['biased'].reason


def test_no_headline_of_a_family_that_rules_were_searched_on_or_whose_base_was_asked_one_way():
    row = find(rows(plan=dataclasses.replace(PLAN, searched=('wide',))), 'damage')
    assert not row.headline
    assert 'rules were searched on this family' in row.reason
    row = find(rows([o for o in outcomes() if o.attack != 'few_shot']), 'damage')
    assert not row.headline
    assert 'the base student was asked in one way only' in row.reason


def test_headlines_need_every_rule():
    assert find(rows(), 'damage').headline
    assert find(rows(), 'damage_adaptive').headline
    for given, plan, verdicts, reason in [
        (outcomes(3), PLAN, VERDICTS, '3 seeds only screen'),
        ([dataclasses.replace(o, seen=True) for o in outcomes()], PLAN, VERDICTS, 'a proxy was of this family'),
        (None, PLAN, {}, 'eligibility is not known'),
        ([dataclasses.replace(o, split='tune') for o in outcomes()], dataclasses.replace(PLAN, split='tune'), VERDICTS,
         'read on tune'),
    ]:  # fmt: skip
        row = find(rows(given, plan, verdicts), 'damage')
        assert not row.headline
        assert reason in row.reason
    row = find(rows(plan=dataclasses.replace(PLAN, attacks=(*PLAN.attacks, 'paraphrase'))), 'damage_adaptive')
    assert not row.headline
    assert 'never run: paraphrase' in row.reason


def test_a_headline_needs_its_controls_on_the_same_family():
    alone = [dataclasses.replace(o, role='defence') for o in outcomes() if o.arm != 'hot']
    assert 'no control was graded on this family' in find(rows(alone), 'damage').reason
    promised = dataclasses.replace(PLAN, always={'answers alone': 'prefill', 'shuffled prompts': 'shuffled'})
    row = find(rows(plan=promised), 'damage')
    assert not row.headline
    assert 'not run beside it: shuffled prompts' in row.reason
    assert find(rows(plan=dataclasses.replace(PLAN, always={'answers alone': 'prefill'})), 'damage').headline


def test_a_headline_needs_more_than_what_its_control_takes():
    """The control's student is as bad as the defence's but for the wobble of its seeds, which is 2 points at most."""
    taken = [
        dataclasses.replace(o, correct=o.correct[24:] + (False,) * 24) if o.arm == 'hot' else o for o in outcomes()
    ]
    row = find(rows(taken), 'damage')
    assert not row.headline
    assert row.reason == 'no headline: not known to take more than its control: hot'
    another = dataclasses.replace(PLAN, controls={'ads': ('chance',)})
    chance = [dataclasses.replace(o, arm='chance') for o in outcomes() if o.arm == 'hot']
    assert find(rows([*taken, *chance], another), 'damage').headline
    assert 'no control was graded' in find(rows(taken, another), 'damage').reason
    both = dataclasses.replace(PLAN, controls={'ads': ('chance', 'hot')})
    assert 'not every control was graded' in find(rows(taken, both), 'damage').reason


def test_a_control_is_beaten_at_equal_steps():
    """The defence has 50 after 50 steps, its control 80 after 100, and after 50 as much as the defence or more."""
    given = with_budgets(75, 50)
    for after_50, beaten in ((50, False), (70, True)):
        points = [{'step': s, 'tokens': 10 * s, 'accuracy': x / 100} for s, x in ((100, 80), (50, after_50))]
        longer = dataclasses.replace(THREAT, steps=100)
        control = [
            dataclasses.replace(o, threat=longer, budgets=tuple(p | {'accuracy': p['accuracy'] + 0.01 * (o.seed % 2)}
                                                                for p in points))
            if o.arm == 'hot' else o for o in given
        ]  # fmt: skip
        assert find(rows(control), 'damage').headline == beaten
    unknown = [dataclasses.replace(o, budgets=()) if o.arm == 'hot' else o for o in control]
    assert 'not known to take more than its control: hot' in find(rows(unknown), 'damage').reason


def with_budgets(*short):
    """Students of 100 and 50 steps; the shorter ones of the clean and the defended arm have these right of 100."""
    right = dict(zip(('clean', 'defended'), short, strict=True))
    found = []
    for o in outcomes():
        if o.attack == 'sft' and o.source in right:
            points = ((100, o.accuracy), (50, right[o.source] / 100 + 0.01 * (o.seed % 2)))
            points = points if o.source == 'clean' else points[1:]
            budgets = tuple({'step': s, 'tokens': 10 * s, 'accuracy': x} for s, x in points)
            threat = dataclasses.replace(o.threat, steps=points[0][0])
            o = dataclasses.replace(o, threat=threat, budgets=budgets)
        found.append(o)
    return found


def test_a_headline_holds_at_equal_steps():
    row = find(rows(with_budgets(75, 50)), 'damage')
    assert row.reason.startswith('unequal steps: clean 100, ads 50')
    assert row.headline
    row = find(rows(with_budgets(50, 50)), 'damage')
    assert not row.headline
    assert 'the interval reaches 0 in damage_at_steps, damage_at_tokens' in row.reason
    unknown = [dataclasses.replace(o, budgets=()) for o in with_budgets(75, 50)]
    assert 'trained for unequal steps' in find(rows(unknown), 'damage').reason


def test_a_headline_needs_a_lower_end_above_0_though_its_p_passes():
    plan = dataclasses.replace(PLAN, family=('damage',))
    clean = {o.seed: sum(o.correct) for o in outcomes() if (o.source, o.attack) == ('clean', 'sft')}
    given = [
        outcome('defended', clean[o.seed] - 10 * (o.seed < 3), o.seed, 'ads')
        if (o.arm, o.attack) == ('ads', 'sft') else o for o in outcomes()
    ]  # fmt: skip
    # The control takes nothing: its student is as good as the clean one.
    given = [outcome('defended', clean[o.seed] + o.seed % 2, o.seed, 'hot', role='control') if o.arm == 'hot' else o
             for o in given]  # fmt: skip
    row = find(rows(given, plan), 'damage')
    assert row.p < 0.05
    assert row.low < 0
    assert not row.headline
    assert row.reason == 'no headline: the interval reaches 0'


def test_a_headline_needs_the_whole_grid():
    threat = dataclasses.replace(THREAT, settings=5)
    row = find(rows([dataclasses.replace(o, threat=threat) if o.arm == 'ads' else o for o in outcomes()]), 'damage')
    assert not row.headline
    assert 'tuned over 5 settings, fewer than 6' in row.reason


def test_the_temperature_baseline_carries_no_headline():
    hot = [dataclasses.replace(o, role='defence') if o.arm == 'hot' else o for o in outcomes()]
    hot += [dataclasses.replace(o, arm='chance') for o in outcomes() if o.arm == 'hot']
    hot = [dataclasses.replace(o, correct=(True,) * 50 + (False,) * 50) if o.arm == 'hot' else o for o in hot]
    row = find(rows(hot, verdicts=VERDICTS | {'hot': VERDICTS['ads']}), 'damage', 'hot')
    assert not row.headline
    assert row.reason == 'no headline: it is the baseline that only samples hotter'
