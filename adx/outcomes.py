"""What one distilled student turned out to be, and the threat model: a report's rows.

An attack runs three times at equal queries and data: on the defended traces, on the clean ones, and on the attacker's
own resources only. `base` is a student that was not distilled.
"""

from __future__ import annotations

import dataclasses
from typing import Any

SOURCES = ('defended', 'clean', 'own', 'base')


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """What the attacker had, derived from the run that it is stored with.

    queries: prompts sent to the teacher; samples: traces drawn per prompt; traces, tokens: trained on, after the
    attack's own filters; accounts: over which the queries were spread. prefill: text put in the teacher's mouth.
    log_probs: how many of the served distribution per token, 0 none. clean_traces: of the undefended teacher at hand.
    verifier: whether gold answers were checked against. own_model: '' or which model of its own it used, and for what.
    knows: what it knew of the defence: 'nothing', 'algorithm' or 'strength'. student: architecture family.
    steps: optimiser steps; settings: how many optimiser settings were tried to choose this one.
    scored: texts that the teacher scored while the student trained, beside the queries.
    """

    queries: int
    samples: int
    traces: int
    tokens: int
    student: str
    steps: int
    settings: int
    accounts: int = 1
    prefill: str = ''
    log_probs: int = 0
    clean_traces: int = 0
    verifier: bool = False
    own_model: str = ''
    knows: str = 'nothing'
    scored: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One student of one seed after one attack, graded on one split.

    arm: the setting whose traces it had, '' for base and own; role: 'defence' or 'control'; attack: its name in the
    run's config; source: one of SOURCES; student: the family; seen: whether a proxy was of that family.
    setting: the optimiser setting, chosen on attack_val on seed 0 and frozen. split: what `correct` was graded on.
    correct: one bool a prompt, in the order of `prompts`, a hash of the ids of the prompts.
    rates: shares of the student's answers in [0, 1]: 'unparsed', 'truncated', 'lenient' (right by lenient extraction),
    'timed_out' (the grader ran out of time: wrong). curve: dicts with step, tokens (of targets), accuracy and, where
    there are clean holdout traces, loss and kl: nats a token on them, kl from the teacher where vocabularies are the
    same. budgets: where the study wants each, the same without losses and with learning_rate, of this student at its
    end and of the best of every other number of steps, each trained to its own.
    seconds: of training. identity: hashes: study, weights of the student, attack. lessons: reason -> how many
    lessons were dropped or refused for it, 'destroyed' those of them that no honest reader could use either.
    """

    arm: str
    role: str
    attack: str
    source: str
    student: str
    seen: bool
    seed: int
    setting: dict[str, Any]
    split: str
    prompts: str
    correct: tuple[bool, ...]
    rates: dict[str, float]
    threat: ThreatModel
    curve: tuple[dict[str, float], ...] = ()
    budgets: tuple[dict[str, float], ...] = ()
    diverged: bool = False
    seconds: float = 0.0
    identity: dict[str, str] = dataclasses.field(default_factory=dict)
    lessons: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return sum(self.correct) / len(self.correct)


@dataclasses.dataclass(frozen=True)
class Quality:
    """One arm's traces on one seed, as an honest reader gets them: what makes a defence eligible.

    correct, forced, lenient: one bool a prompt, in the order of `prompts` (a hash of their ids); `forced` is graded
    after the defended decoder was made to answer. slices: name -> one label a prompt ('difficulty' -> '3', ...).
    tokens: mean new tokens a trace; reasoning_tokens: of its reasoning. Shares in [0, 1]: finished (ended by itself),
    repetition (of 4-grams that occurred before in the trace), true_steps (of arithmetic statements that are true,
    nan where there are none), unparsed, several (more than one final answer form), first_differs (the first form
    states another answer than the last). nll: nats a token under a model that is neither proxy nor teacher.
    kl_mean, kl_95: nats a token from the teacher. seconds: of decoding them all, at the rate of arms timed side by
    side; 0 where that is not known. timed_out: share of answers whose grader ran out of time (wrong). fallback: share
    of tokens that were the teacher's because a proxy gave no finite numbers.
    by_prompt: what intervals are taken over, one number a prompt: tokens, reasoning_tokens, finished, repetition,
    statements and true_statements (counts), nats and scored_tokens (of nll).
    """

    arm: str
    seed: int
    prompts: str
    correct: tuple[bool, ...]
    forced: tuple[bool, ...]
    lenient: tuple[bool, ...]
    slices: dict[str, tuple[str, ...]]
    tokens: float
    reasoning_tokens: float
    finished: float
    repetition: float
    true_steps: float
    unparsed: float
    several: float
    first_differs: float
    nll: float
    kl_mean: float = 0.0
    kl_95: float = 0.0
    seconds: float = 0.0
    timed_out: float = 0.0
    fallback: float = 0.0
    by_prompt: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
