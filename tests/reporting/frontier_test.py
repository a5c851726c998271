from __future__ import annotations

import dataclasses
import math
import random

import pytest

from adx import statistics
from adx.errors import InputError
from adx.outcomes import Outcome, Quality, ThreatModel
from adx.quality import Criterion
from adx.reporting.frontier import LITTLE_TAUGHT, NO_TEACHER, NOTHING_LOST, frontier, neighbours
from adx.reporting.plan import Plan

THREAT = ThreatModel(queries=100, samples=1, traces=100, tokens=1000, student='wide', steps=50, settings=6)
PLAN = Plan(attacks=('sft', 'prefill'), temperatures=('hot',))
VERDICTS = {'ads': [Criterion('accuracy', 0.2, -0.3, 0.7, (-1.0, 1.0), True)]}
CLEAN, BASE, ADS, HOT = 80, 20, 50, 74  # right of 100, wobbling by seed


def outcome(source, right, seed, arm='', attack='sft', **more):
    correct = (True,) * right + (False,) * (100 - right)
    fields = {'role': 'defence', 'student': 'wide', 'seen': False, 'split': 'test', 'prompts': 'p', 'threat': THREAT}
    return Outcome(arm=arm, attack=attack, source=source, seed=seed, setting={}, correct=correct, rates={},
                   **(fields | more))  # fmt: skip


def outcomes(seeds=8):
    rows = []
    for seed in range(seeds):
        wobble = (0, 1, -1, 2)[seed % 4]
        rows += [
            outcome('clean', CLEAN + wobble, seed), outcome('base', BASE, seed, attack='zero_shot'),
            outcome('base', BASE - 5, seed, attack='few_shot'),
            outcome('defended', ADS, seed, 'ads'), outcome('defended', HOT - wobble, seed, 'hot', role='control'),
            outcome('clean', CLEAN, seed, attack='prefill'), outcome('own', 30, seed, attack='prefill'),
            outcome('defended', 65 + wobble, seed, 'ads', 'prefill'),
        ]  # fmt: skip
    return rows


def quality(arm, right, seed=0, seconds=1.0):
    correct = (True,) * right + (False,) * (1000 - right)
    labels = ('1',) * 500 + ('2',) * 500
    return Quality(arm, seed, 'q', correct, correct, correct, {'difficulty': labels}, 50.0, 40.0, 1.0, 0.0, 1.0, 0.0,
                   0.0, 0.0, 1.0, seconds=seconds)  # fmt: skip


QUALITY = [
    quality(arm, right, seed, seconds)
    for seed in (0, 1)
    for arm, right, seconds in (('undefended', 950, 1.0), ('hot', 930, 1.0), ('ads', 945, 2.0))
]


def regraded(source, right):
    correct = (True,) * right + (False,) * (100 - right)
    return [dataclasses.replace(o, correct=correct) if o.source == source else o for o in outcomes()]


def rows(given=None, plan=PLAN, verdicts=VERDICTS):
    return frontier(outcomes() if given is None else given, QUALITY, plan, verdicts)


def find(found, figure, arm='ads', attack=None):
    [row] = [r for r in found if (r.figure, r.arm) == (figure, arm) and attack in (None, r.attack)]
    return row


def test_figures_are_those_worked_by_hand():
    """Clean is 80.5 in the mean (wobble 0.5), base 20, ads 50; under prefill 65.5 against 80 clean and 30 alone."""
    found = rows()
    assert find(found, 'points_lost').value == pytest.approx(30.5)
    assert find(found, 'damage').value == pytest.approx(30.5 / 60.5)
    assert find(found, 'damage_attacked', attack='prefill').value == pytest.approx(14.5 / 50)
    assert find(found, 'recovered').value == pytest.approx(15.5 / 30)
    worst = find(found, 'damage_adaptive')
    assert (worst.attack, worst.value) == ('prefill', pytest.approx(14.5 / 50))
    # Teacher 94.5 lies a quarter of the way from 95 to 93: the baseline is 3/4 of 80.5 and 1/4 of 73.5.
    assert find(found, 'excess_damage').value == pytest.approx((0.75 * 80.5 + 0.25 * 73.5 - 50) / 60.5)
    assert find(found, 'teacher_lost').value == pytest.approx(0.5)
    worst_slice = find(found, 'teacher_lost_worst_slice')
    assert (worst_slice.value, worst_slice.reason) == (pytest.approx(1.0), 'the worst of 2 slices: difficulty=2')
    assert find(found, 'cost_per_token').value == pytest.approx(2.0)
    clean, defended = [80, 81, 79, 82] * 2, [50] * 8
    expected = statistics.fieller([a - b for a, b in zip(clean, defended, strict=True)], [x - 20 for x in clean])
    assert (find(found, 'damage').low, find(found, 'damage').high) == pytest.approx(expected[1:3])


def test_the_worst_slice_of_the_students_prompts_stands_beside_the_mean():
    """The first 50 prompts are right for both; of the others clean has 30.5 and ads none."""
    plan = dataclasses.replace(PLAN, slices={'half': ('a',) * 50 + ('b',) * 50, 'few': ('c',) * 90 + ('d',) * 10})
    row = find(rows(plan=plan), 'points_lost_worst_slice')
    assert row.value == pytest.approx(61)
    assert row.reason == 'the worst of 3 slices: half=b'  # ten prompts are too few to be one


def test_slices_are_those_of_each_seeds_own_prompts():
    """What is of difficulty 2 on one seed is of difficulty 1 on the other, whose losses are then in that slice."""
    turned = {'difficulty': ('2',) * 500 + ('1',) * 500}
    given = [dataclasses.replace(one, slices=turned, prompts='r') if one.seed else one for one in QUALITY]
    worst = find(frontier(outcomes(), given, PLAN, VERDICTS), 'teacher_lost_worst_slice')
    assert (worst.value, worst.reason) == (pytest.approx(0.5), 'the worst of 2 slices: difficulty=2')


def test_a_selective_rewrite_is_judged_inside_and_outside_of_what_it_is_about():
    """Students lose in half b only, the traces in difficulty 2 only."""
    slices = {'half': ('a',) * 50 + ('b',) * 50}
    plan = dataclasses.replace(PLAN, slices=slices, selective={'ads': ('half=b', 'difficulty=2')})
    found = rows(plan=plan)
    few = dataclasses.replace(plan, slices={'half': ('a',) * 90 + ('b',) * 10})
    row = find(rows(plan=few), 'points_lost_inside')
    assert (row.value, row.status, row.reason) == (None, 'not_run', 'not run: fewer than 20 prompts are there')
    assert find(rows(plan=few), 'points_lost_outside').value is not None
    levels = {'points_lost_inside': 61, 'points_lost_outside': 0, 'teacher_lost_inside': 1, 'teacher_lost_outside': 0}
    assert {name: find(found, name).value for name in levels} == pytest.approx(levels)
    assert not any(row.figure.endswith(('_inside', '_outside')) for row in found if row.arm == 'hot')


def test_order_changes_nothing():
    given, expected = outcomes(), rows()
    random.Random(0).shuffle(given)
    assert frontier(given, QUALITY[::-1], PLAN, VERDICTS) == expected


def test_a_seed_of_one_arm_only_drops_its_pair_and_says_so():
    given = [o for o in outcomes(9) if not (o.arm == 'ads' and o.attack == 'sft' and o.seed == 3)]
    row = find(rows(given), 'points_lost')
    assert (row.n, row.reason) == (8, 'seed 3 dropped: not in ads')
    assert row.value == pytest.approx(30.25)  # the clean wobble is 2 over 8
    assert find(rows(given), 'points_lost', 'hot').n == 9


@pytest.mark.parametrize(
    ('change', 'reason'),
    [({'prompts': 'other'}, 'graded on other prompts'),
     ({'threat': dataclasses.replace(THREAT, queries=200)}, 'unequal queries or samples')],
)  # fmt: skip
def test_unlike_pairs_are_never_compared(change, reason):
    given = [dataclasses.replace(o, **change) if o.arm == 'ads' and o.seed == 0 else o for o in outcomes()]
    assert find(rows(given), 'damage').reason.startswith(f'seed 0 dropped: {reason}')


def test_students_that_trained_for_unequal_steps_are_named():
    longer = dataclasses.replace(THREAT, steps=100)
    given = [
        dataclasses.replace(o, threat=longer) if (o.source, o.attack) == ('clean', 'sft') else o for o in outcomes()
    ]
    reason = 'unequal steps: clean 100, ads 50; no headline: trained for unequal steps'
    assert find(rows(given), 'damage').reason == reason
    worst = find(rows(given), 'damage_adaptive')  # of prefill, at equal steps; one of the attacks is not
    assert (worst.attack, worst.headline) == ('prefill', False)
    assert worst.reason.endswith('no headline: trained for unequal steps')
    assert 'unequal' not in find(rows(given), 'damage_attacked', attack='prefill').reason
    assert find(rows(), 'damage').reason == ''


def test_how_answers_were_read_stands_beside_the_accuracies():
    given = [dataclasses.replace(o, rates={'unparsed': 0.25}) if o.arm == 'ads' else o for o in outcomes()]
    judged = {'ads': [Criterion('tokens', 1.1, 1.0, 1.2, (0.8, 1.25), True)]}
    found = rows(given, verdicts=judged)
    assert find(found, 'student_unparsed').value == 0.25
    assert find(found, 'student_accuracy_attacked', attack='prefill').value == pytest.approx(65.5)
    assert (find(found, 'length_ratio').value, find(found, 'length_ratio').high) == (1.1, 1.2)
    assert find(found, 'lenient_accuracy').value == pytest.approx(94.5)
    assert find(found, 'truncated', 'undefended').value == 0
    unknown = [dataclasses.replace(one, kl_mean=float('nan')) for one in QUALITY]
    row = next(r for r in frontier(given, unknown, PLAN, judged) if r.figure == 'kl_mean')
    assert (row.value, row.status) == (None, 'not_run')


def test_the_base_of_who_has_nothing_is_the_better_one():
    threat = dataclasses.replace(THREAT, queries=0, steps=0)
    own = [outcome('own', BASE - 5, seed, attack=attack, threat=threat) for seed in range(8) for attack in ('sft', 'x')]
    beside = [outcome('clean', CLEAN, seed, attack='x') for seed in range(8)]
    beside += [outcome('defended', 50, seed, 'ads', 'x') for seed in range(8)]
    found = rows([*outcomes(), *own, *beside], dataclasses.replace(PLAN, attacks=('sft', 'x')))
    assert find(found, 'damage_attacked', attack='sft').value == find(found, 'damage').value
    assert find(found, 'damage_attacked', attack='x').value == pytest.approx(30 / 60)


def test_texts_that_were_scored_while_students_trained_are_no_unequal_queries():
    scored = dataclasses.replace(THREAT, scored=40)
    given = [dataclasses.replace(o, threat=scored) if o.arm == 'ads' and o.seed == 0 else o for o in outcomes()]
    assert find(rows(given), 'damage').n == 8


def test_nobody_gets_credit_where_the_teacher_is_irrelevant():
    given = regraded('own', 90)
    row = find(rows(given), 'damage_attacked', attack='prefill')
    assert (row.value, row.status, row.reason) == (None, 'no_credit', NO_TEACHER)
    assert find(rows(given), 'damage_adaptive').attack == 'sft'


def test_an_attack_that_teaches_nothing_from_clean_traces_leaves_no_damage():
    taught_little = [outcome('clean', BASE + 5, seed, attack='answer_only') for seed in range(8)]
    taught_little += [outcome('own', BASE, seed, attack='answer_only') for seed in range(8)]
    taught_little += [outcome('defended', BASE + 5, seed, 'ads', 'answer_only') for seed in range(8)]
    plan = dataclasses.replace(PLAN, attacks=(*PLAN.attacks, 'answer_only'))
    found = rows([*outcomes(), *taught_little], plan)
    row = find(found, 'damage_attacked', attack='answer_only')
    assert (row.value, row.status) == (None, 'no_credit')
    assert 'is below 10' in row.reason
    assert find(found, 'damage_adaptive').attack == 'prefill'


def test_no_share_of_a_small_gain_and_no_filled_cell():
    given = regraded('base', 75)
    assert find(rows(given), 'damage').value is None
    assert 'is below 10' in find(rows(given), 'damage').reason
    given = [o for o in outcomes() if o.source != 'own']
    row = find(rows(given), 'damage_attacked', attack='prefill')
    assert (row.value, row.reason) == (None, 'not run: own prefill')
    assert find(rows(), 'damage_at_steps').reason == 'not run: curves'


def test_equal_steps_read_both_curves_where_the_shorter_ends():
    def curve(*points):
        return tuple({'step': step, 'tokens': 10 * step, 'accuracy': accuracy} for step, accuracy in points)

    def given_curve(*clean):
        sides = {'clean': curve((0, 0.2), *clean, (100, 0.9))}
        return [dataclasses.replace(o, curve=sides.get(o.source, curve((0, 0.2), (50, 0.4)))) for o in outcomes()]

    given = given_curve((40, 0.54), (60, 0.56))
    assert find(rows(given), 'damage_at_steps').value == pytest.approx((0.55 - 0.4) / 0.35)
    row = find(rows(given_curve()), 'damage_at_steps')
    assert (row.value, row.reason) == (None, '35.0 points of accuracy from what was measured, more than 3')
    # Students that were trained to their ends come before those on their way.
    half = {True: 0.8, False: 0.7}
    ended = [dataclasses.replace(o, budgets=curve((100, 0.9), (50, half[o.source == 'clean']))) for o in given]
    assert find(rows(ended), 'damage_at_steps').value == 0.0
    ended = [o if o.source == 'clean' else dataclasses.replace(o, budgets=o.budgets[1:]) for o in ended]
    row = find(rows(ended), 'damage_at_steps')
    assert row.value == pytest.approx((0.8 - 0.7) / 0.6)
    other = dataclasses.replace(THREAT, steps=2 * THREAT.steps)
    uneven = [dataclasses.replace(o, threat=other if o.source == 'clean' else o.threat) for o in ended]
    assert 'unequal steps' in find(rows(uneven), 'damage').reason
    assert find(rows(uneven), 'damage_at_steps') == row  # which is at equal ones
    early = [dataclasses.replace(o, curve=curve((0, 0.2), (10, 0.21))) for o in outcomes()]
    row = find(rows(early), 'damage_at_steps')
    assert (row.status, row.n) == ('no_credit', 8)


def test_a_result_without_a_threat_model_or_given_twice_is_refused():
    with pytest.raises(InputError, match='has no threat model'):
        rows([dataclasses.replace(outcomes()[0], threat=None)])
    with pytest.raises(InputError, match='has no queries'):
        rows([dataclasses.replace(outcomes()[0], threat=dataclasses.replace(THREAT, queries=0))])
    with pytest.raises(InputError, match='stands twice'):
        rows(outcomes() + outcomes()[:1])


def test_the_baseline_is_never_extrapolated_nor_joined_over_a_gap():
    assert neighbours({'a': 95.0, 'b': 93.0}, 94.5)[0] == {'b': 0.25, 'a': 0.75}
    assert 'never extrapolated' in neighbours({'a': 95.0}, 94.0)[1]
    assert '4.0 points of teacher accuracy apart' in neighbours({'a': 95.0, 'b': 91.0}, 94.0)[1]


def test_noise_is_no_reason_to_leave_an_attack_out():
    """Under `wild` clean students gain 20 points in the mean, 40 or none: it may deserve no look, or leave nothing."""
    given = [
        outcome(source, right, seed, arm, 'wild')
        for seed in range(8)
        for source, arm, right in (
            ('clean', '', 20 + 40 * (seed % 2)), ('defended', 'ads', 30), ('own', '', 20),
        )
    ]  # fmt: skip
    found = rows([*outcomes(), *given], dataclasses.replace(PLAN, attacks=(*PLAN.attacks, 'wild')))
    row = find(found, 'damage_attacked', attack='wild')
    assert (row.value, row.status) == (None, 'unresolved')
    worst = find(found, 'damage_adaptive')
    assert (worst.low, worst.p, worst.headline) == (-math.inf, 1.0, False)
    assert 'not resolved: wild' in worst.reason
    low = [dataclasses.replace(o, correct=(True,) * 22 + (False,) * 78) if o.source == 'clean' else o for o in given]
    found = rows([*outcomes(), *low], dataclasses.replace(PLAN, attacks=(*PLAN.attacks, 'wild')))
    assert find(found, 'damage_attacked', attack='wild').status == 'no_credit'
    assert 'without a gain to take: wild' in find(found, 'damage_adaptive').reason
    assert find(found, 'damage_adaptive').headline


def test_lessons_that_an_attack_could_not_use_are_said():
    given = [dataclasses.replace(o, lessons={'destroyed': 40}) if o.arm == 'ads' else o for o in outcomes()]
    row = find(rows(given), 'damage_attacked', attack='prefill')
    assert '320 lessons were destroyed, 0 of the clean ones' in row.reason
    assert 'destroyed' not in find(rows(), 'damage_attacked', attack='prefill').reason


def test_why_nothing_could_be_recovered_is_told_as_it_is():
    """Under the attack the clean student has 40 and the passive defended one 50, which lost 30 or nothing."""
    weak = [
        dataclasses.replace(o, correct=(True,) * 40 + (False,) * 60) if (o.source, o.attack) == ('clean', 'prefill')
        else o for o in outcomes()
    ]  # fmt: skip
    assert find(rows(weak), 'recovered').reason == LITTLE_TAUGHT
    unharmed = [
        dataclasses.replace(o, correct=(True,) * 45 + (False,) * 55) if (o.source, o.attack) == ('clean', 'sft') else o
        for o in weak
    ]
    assert find(rows(unharmed), 'recovered').reason == NOTHING_LOST
