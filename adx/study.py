"""A study: which students learn from which arms' traces, by which attacks, graded on what.

A seed redraws everything after the splits: the traces, the directions of the rules, the order of training and what
adapters start from. All arms share it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from adx import attacks
from adx import experiment as experiments
from adx.attacks import OF_OWN_MODEL, Attack, BestOfK
from adx.datasets.chat import Prompting
from adx.defences import EqualKl, Undefended
from adx.drafting import matched_to
from adx.errors import ConfigError
from adx.experiment import Experiment, ModelSource
from adx.forcing import Forcing
from adx.hashing import content_hash
from adx.optimising import Recipe
from adx.types import Sampling, check_choice, check_range

GRADED_ON = ('tune', 'test')  # what a student's figures come from; its settings are chosen on attack_val
# Of its identity, the newest first, with what they are where nobody sets them.
LATER = (('fresh_prompts', False), ('skip', 0), ('rewriter', [None, None]), ('each_budget', False))
AT_HAND = ('clean', 'grade', 'canonicalise')  # what every study gives to attacks; OF_OWN_MODEL comes with one


@dataclasses.dataclass(frozen=True)
class Student:
    """A family of students. seen: whether a proxy of the experiment is of it. prompting: as its tokenizer wants it."""

    name: str
    source: ModelSource
    seen: bool = False
    prompting: Prompting = Prompting()


@dataclasses.dataclass(frozen=True)
class Study:
    """One comparison. experiment: its arms' traces; its own seed gives way to those of the study.

    Where the experiment makes selections, these stand for its arms, one trace a prompt: arms are their candidates.
    Rewrites stand beside either.
    clean: the arm of the undefended teacher at the same sampling; controls: arms that carry no information.
    learning_rates, budgets: the grid of optimiser settings, budgets in steps; every arm, attack and family has all of
    them on the first seed, and keeps the one that is best on attack_val on the others.
    split: what students are graded on; exam, choice: prompts of it and of attack_val. sampling: of the students.
    shots: worked examples, clean traces, that the base student is asked behind too; the better way counts as base.
    fresh_prompts: every seed's traces are of other prompts, `experiment.limit` each; else all are of the same.
    each_budget: the best setting of every other budget is trained to its end too, so that students are compared at
      equal steps. curve: how often a chosen student is graded before its end; its weights of then are kept meanwhile.
    judge: neither teacher nor proxy, whose likelihood of the traces says how fluent they are. forcing: of answers.
    own: the attackers' own model, which scores lessons for them.
    ladder: attacks of rising cost, the first with all of one unit, from which `cost_multiplier` is read.
    temperatures: arms of the baseline that only samples hotter. testbed: what the report calls the setting.
    left_out: attacks that it does without, each with the reason. searched: families that rules were searched on.
    """

    experiment: Experiment
    students: tuple[Student, ...]
    attacks: tuple[Attack, ...] = (Attack('sft'),)
    recipe: Recipe = Recipe()
    learning_rates: tuple[float, ...] = (2e-4, 5e-4, 1e-3)
    budgets: tuple[int, ...] = (100, 200)
    seeds: tuple[int, ...] = (0, 1, 2)
    clean: str = 'plain'
    controls: tuple[str, ...] = ()
    split: str = 'tune'
    exam: int = 500
    choice: int = 250
    fresh_prompts: bool = False
    each_budget: bool = False
    curve: int = 0
    shots: int = 0
    sampling: Sampling = Sampling(temperature=0.0)
    max_new_tokens: int = 256
    judge: Student | None = None
    own: Student | None = None
    forcing: Forcing = Forcing()
    temperatures: tuple[str, ...] = ()
    ladder: tuple[str, ...] = ()
    testbed: str = ''
    left_out: tuple[tuple[str, str], ...] = ()
    searched: tuple[str, ...] = ()

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The grid, in order."""
        return [{'learning_rate': rate, 'steps': steps} for rate in self.learning_rates for steps in self.budgets]

    @property
    def arms(self) -> list[str]:
        """What students are distilled from, by name."""
        e = self.experiment
        return [one.name for one in (*(e.selections or e.arms), *e.rewrites)]

    @property
    def asks_arms(self) -> bool:
        """Whether attackers can ask a setting again: neither a selection nor a rewrite is made for one answer alone."""
        return not (self.experiment.selections or self.experiment.rewrites)

    @property
    def wants_holdout(self) -> bool:
        """Whether clean holdout traces are read beside those that directions are taken on."""
        return self.curve > 0 or any(attack.wants_holdout for attack in self.attacks)

    def of_seed(self, seed: int) -> Experiment:
        """The run of one of the seeds."""
        before = self.seeds.index(seed) * self.experiment.limit if self.fresh_prompts else 0
        return dataclasses.replace(self.experiment, seed=seed, skip=self.experiment.skip + before)

    @property
    def always(self) -> dict[str, str]:
        """What stands beside every figure -> the attack that is it, '' for none."""
        kinds = {'answers alone': attacks.AnswerOnly, 'shuffled prompts': attacks.ShuffledPrompts}
        return {
            what: next((one.name for one in self.attacks if [type(each) for each in one.transforms] == [kind]), '')
            for what, kind in kinds.items()
        }

    def role(self, arm: str) -> str:
        return 'control' if arm in self.controls else 'defence'

    def controls_of(self, arm: str) -> tuple[str, ...]:
        """Those made to an arm's measure, and those made to nobody's."""
        rules = {one.name: one.defence for one in self.experiment.arms}
        like = {one.name: matched_to(one.rewriter) for one in self.experiment.rewrites}
        like |= {
            name: next((x for x, other in rules.items() if other == rule.reference), '')
            for name, rule in rules.items() if isinstance(rule, EqualKl)
        }  # fmt: skip
        return tuple(name for name in self.controls if like.get(name, '') in ('', arm))


REGISTRY: dict[str, type] = {
    **experiments.REGISTRY,
    **attacks.MENU,
    'attack': Attack,
    'forcing': Forcing,
    'recipe': Recipe,
    'student': Student,
    'study': Study,
}


def identity(study: Study) -> dict[str, Any]:
    """The JSON of what decides the outcomes. More seeds, students or attacks are more rows of the same study."""
    fields = experiments.to_json(study, REGISTRY)
    open_ended = ('seeds', 'students', 'attacks', 'ladder', 'experiment', 'testbed', 'left_out', 'searched')
    return {name: value for name, value in fields.items() if name not in open_ended} | {
        'experiment': experiments.identity(dataclasses.replace(study.experiment, seed=0)),
        'selections': fields['experiment']['selections'] + fields['experiment']['rewrites'],
        'rewriter': [fields['experiment'][name] for name in ('rewriter', 'rewriter_prompting')],
    }


def study_hash(study: Study) -> str:
    return content_hash(identity(study))


def known_as(study: Study) -> list[str]:
    """The hash of a study, and those that it had before LATER fields were there, which it leaves as they are."""
    content = identity(study)
    content['experiment'] = dict(content['experiment'])
    found = [content_hash(content)]
    for name, default in LATER:
        holder = content['experiment'] if name == 'skip' else content
        if holder.pop(name) != default:
            break
        found.append(content_hash(content))
    return found


def attack_hash(attack: Attack) -> str:
    return content_hash(experiments.to_json(attack, REGISTRY))


def attack_hashes(study: Study) -> dict[str, str]:
    """Name -> a hash of what the attack is."""
    return {attack.name: attack_hash(attack) for attack in study.attacks}


def commitment(study: Study) -> str:
    """Of what is frozen before the split test is read: the study, its students, attacks in their order and seeds, and
    what headlines are held to.
    """
    students = experiments.to_json(study.students, REGISTRY)
    held_to = study.seeds, study.ladder, study.left_out, study.searched
    return content_hash([study_hash(study), students, list(attack_hashes(study).items()), held_to])


def at_hand(study: Study) -> tuple[str, ...]:
    """The resources of its attackers."""
    asked = ('query',) if study.asks_arms else ()
    return (*AT_HAND, *asked, *(OF_OWN_MODEL if study.own else ()))


def check(study: Study) -> None:
    """Raises ConfigError for what no study could run. Needs no model, data or device."""
    experiments.check(study.experiment)
    try:
        _check(study)
    except ValueError as error:
        raise ConfigError(f'study: {error}') from error
    given = at_hand(study)
    for attack in study.attacks:
        _check_amounts(attack, study)
        beyond = [name for name in attack.needs if name not in given]
        if beyond:
            raise ConfigError(
                f'attack {attack.name!r} needs {beyond}, which this study does not provide: it gives {given}; '
                f'{OF_OWN_MODEL} come with `own`, a query with arms'
            )
        _check_loss(attack, study)
    if not study.attacks[0].is_passive:
        raise ConfigError(
            f'study: attacks begins with {study.attacks[0].name!r}; the first is the passive one, which all figures '
            'are held against: no transforms, hard labels, longer = 1'
        )


def _check_amounts(attack: Attack, study: Study) -> None:
    """That traces are as many as an attack wants, as far as the config tells."""
    e = study.experiment
    if e.limit and attack.prompts > e.limit:
        raise ConfigError(f'attack {attack.name!r} sends prompts = {attack.prompts} and limit = {e.limit}; lower them')
    there = 1 if e.selections else e.samples
    if attack.samples > there:
        raise ConfigError(f'attack {attack.name!r} has samples = {attack.samples} and a prompt has {there}; draw more')
    there = attack.samples or there
    for each in attack.transforms:
        if isinstance(each, BestOfK) and each.k > there:
            raise ConfigError(f'attack {attack.name!r} has BestOfK.k = {each.k} and a prompt has {there}; draw more')
        there = max(there, getattr(each, 'samples', 0))  # asked for anew


def _check_loss(attack: Attack, study: Study) -> None:
    recorded = attack.loss == 'soft' and 'candidates' not in dict(attack.arguments)
    if recorded and study.experiment.decode.record != 'top':
        raise ConfigError(f"attack {attack.name!r} reads served log-probs; set decode.record = 'top'")
    if attack.loss != 'hard' and not recorded and not study.asks_arms:
        raise ConfigError(
            f'attack {attack.name!r} asks the teacher while it trains, and selections and rewrites cannot be asked; '
            'take it against arms'
        )
    if recorded and study.experiment.stop_strings:
        raise ConfigError(f'attack {attack.name!r} reads served log-probs, and what a stop string ends is spelt anew')
    if recorded and dict(attack.arguments).get('temperature', 1.0) != 1.0:
        raise ConfigError(
            f'attack {attack.name!r} has a temperature, and the log-probs that were recorded are a part of a '
            'distribution: give it candidates, as many as the vocabulary has tokens'
        )
    if recorded and study.experiment.rewrites:
        raise ConfigError(f'attack {attack.name!r} reads served log-probs, and rewritten words have none')


def _check(study: Study) -> None:
    study.recipe.check()
    study.sampling.check()
    study.forcing.check()
    check_choice('split', study.split, GRADED_ON)
    check_choice('experiment.split', study.experiment.split, ('train',))  # what students learn from, and nothing else
    for name in ('exam', 'choice', 'max_new_tokens'):
        check_range(name, getattr(study, name), 1)
    check_range('curve', study.curve, 0)
    if study.fresh_prompts and not study.experiment.limit:
        raise ValueError('fresh_prompts without experiment.limit: say how many prompts each seed has')
    check_range('shots', study.shots, 0)
    for name in ('students', 'attacks', 'learning_rates', 'budgets', 'seeds'):
        _check_distinct(name, [getattr(each, 'name', each) for each in getattr(study, name)])
    for student in study.students:
        if not student.name or not student.name.replace('_', '').replace('-', '').isalnum():
            raise ValueError(f'students has one named {student.name!r}; letters, digits, "_" and "-" name its files')
    for rate in study.learning_rates:
        check_range('learning_rates', rate, 0.0, open_low=True)
    for steps in study.budgets:
        check_range('budgets', steps, 1)
    for attack in study.attacks:
        attack.check()
    for name in study.ladder:
        check_choice('ladder', name, tuple(attack.name for attack in study.attacks[1:]))
    for name in (study.clean, *study.controls, *study.temperatures):
        check_choice('clean, controls and temperatures', name, tuple(study.arms))
    if study.clean in {one.name for one in study.experiment.rewrites}:
        raise ValueError(f'clean = {study.clean!r} is a rewrite; name the arm or selection of the undefended teacher')
    chosen = {one.name: one for one in study.experiment.selections}.get(study.clean)
    if chosen is not None and chosen.how != 'first':
        raise ValueError(f"clean = {study.clean!r} is a selection by {chosen.how!r}; name one that takes the 'first'")
    _check_strangers(study)
    arms = {arm.name: arm for arm in study.experiment.arms}
    if not isinstance(arms[chosen.arm if chosen else study.clean].defence, Undefended):
        raise ValueError(f'clean = {study.clean!r} is a defended arm; name the one of the undefended teacher')


def _check_strangers(study: Study) -> None:
    """That nothing that a rule has read counts as unseen, or as a judge of it."""
    proxies = {one.source for one in study.experiment.proxies}
    for student in study.students:
        if student.source.source in proxies and not student.seen:
            raise ValueError(f'student {student.name!r} is a proxy, {student.source.source!r}; say seen=True')
    if study.judge is not None and study.judge.source.source in {*proxies, study.experiment.teacher.source}:
        raise ValueError(f'judge = {study.judge.source.source!r} is the teacher or a proxy; name another model')


def _check_distinct(name: str, values: Sequence[Any]) -> None:
    if not values or len(set(values)) < len(values):
        raise ValueError(f'{name} = {list(values)}; give at least one, and none twice')


Named = TypeVar('Named', Student, Attack)


class Share(NamedTuple):
    """What of a study one process works on: the families and the attacks by name, all where there are none; and of
    these, family by family, every `num_shards`-th pair from number `shard` on.
    """

    students: Sequence[str] = ()
    attacks: Sequence[str] = ()
    shard: int = 0
    num_shards: int = 1

    def of(self, study: Study) -> list[tuple[Student, list[Attack]]]:
        """Families, each with its attacks. Raises ConfigError for a name that the study does not have."""
        students = _chosen('--students', study.students, self.students)
        chosen = _chosen('--attacks', study.attacks, self.attacks)
        mine = list(itertools.product(students, chosen))[self.shard :: self.num_shards]
        return [(one, [attack for _, attack in pairs]) for one, pairs in itertools.groupby(mine, lambda pair: pair[0])]


def _chosen(flag: str, among: Sequence[Named], only: Sequence[str]) -> list[Named]:
    names = [one.name for one in among]
    for name in only:
        if name not in names:
            raise ConfigError(f'{flag} has {name!r}; the study has {names}')
    return [one for one in among if not only or one.name in only]
