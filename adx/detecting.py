"""Whether a suspect learned a customer's marks: committed, asked, journaled, signed.

A case is a directory, private as a workdir is:

    plan.json         what will be asked, in which order, by which test, and the seed of the decoys; no key in it
    commitment.json   the hash of the plan and of the customer's key, written before the first question
    suspect.json      which model answers, and how it is spoken to
    answers/          journals: one line a question; of one that was asked again the last line counts
    verdicts.jsonl    every verdict that was issued, signed
    joint.jsonl       those on several cases, this among them, see attributing.py and verdicts.py

Repeating a case discloses the customer's key of one epoch, never the master.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from adx import files, locks, marks, verdicts
from adx.detectors.trigger import Block, Trigger, Verdict
from adx.errors import ConfigError, InputError, StorageError, malformed
from adx.journal import FORMAT_VERSION, Journal, cut_torn_tails, read_object, read_records, to_json
from adx.lessons import Messages
from adx.marks import Forge, Pair
from adx.suspects import PASSING, Question, Suspect

OWNER, BATCH = 'detect', 32
SUSPECT = 'suspect.json'
PLAN = ('customer', 'epoch', 'suspect', 'test', 'null', 'pairs', 'seed', 'asked')
NAMED = ('customer', 'epoch', 'commitment', 'detected', 'log_p', 'issued')  # of other verdicts, in a verdict
NULL = 'which of the completed pairs are keyed is chance: keyed pairs and decoys come from one generator'


@dataclasses.dataclass(frozen=True)
class Case:
    """customer, epoch: whose marks are looked for. suspect: its name in the verdict. questions: conversations behind
    which a line is begun, used in turn. test: how many pairs, decoys and which level.
    """

    customer: str
    epoch: int
    suspect: str
    questions: tuple[Messages, ...]
    test: Trigger = Trigger()
    pairs: int = 10  # of the customer's, as its traces carry them


def commit(case: Case, path: epath.PathLike, key: bytes, forge: Forge = marks.symbols) -> str:
    """Writes plan and commitment, and returns the hash. Raises ConfigError for a test that could show nothing, and
    where the directory has a plan already.
    """
    try:
        case.test.check()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if case.test.pairs > case.pairs or not case.questions:
        raise ConfigError(
            f'a case asks {case.test.pairs} of {case.pairs} pairs behind {len(case.questions)} conversations; it needs '
            'at least one conversation, and no more pairs than traces carry'
        )
    directory = files.path_of(path)
    if (directory / 'plan.json').exists():
        raise ConfigError(f'{path} has a plan already; a case is committed to once, name another directory')
    plan = make_plan(case, key, forge, secrets.token_bytes(marks.KEY_BYTES))
    digest = commitment(plan, key)
    with files.os_errors(StorageError, f'case {path} was not written'):
        if not directory.exists():
            files.make_private_dir(directory)
        record = {'format_version': FORMAT_VERSION, 'hash': digest, 'committed': locks.utc_now()}
        files.write_private(directory / 'commitment.json', json.dumps(record, indent=1).encode())
        # Last: who is stopped before commits anew, and a plan without its commitment could never have one.
        files.write_private(directory / 'plan.json', json.dumps(plan, indent=1).encode())
    return digest


def commitment(plan: dict[str, Any], key: bytes) -> str:
    """SHA-256 of the plan and the key: who has both can check it, who has neither learns nothing."""
    content = json.dumps([plan, hashlib.sha256(key).hexdigest()], sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(content.encode()).hexdigest()


def make_plan(case: Case, key: bytes, forge: Forge, decoy_key: bytes) -> dict[str, Any]:
    """Blocks of one keyed pair and its decoys; who looks at an answer cannot tell which it is from. JSON-able.

    decoy_key: draws decoys, order, and which of the customer's pairs are asked; the plan keeps it, so that a verdict
    can see that nobody chose them.
    """
    asked = draw(case.test, case.pairs, key, forge, decoy_key)
    for i, one in enumerate(asked):
        one['messages'] = list(case.questions[i % len(case.questions)])
    about = {'customer': case.customer, 'epoch': case.epoch, 'suspect': case.suspect, 'pairs': case.pairs}
    about |= {'test': dataclasses.asdict(case.test), 'seed': decoy_key.hex()}
    return {'format_version': FORMAT_VERSION, **about, 'null': NULL, 'asked': asked}


def draw(test: Trigger, pairs: int, key: bytes, forge: Forge, decoy_key: bytes) -> list[dict[str, Any]]:
    """The pairs of a plan in the order in which they are asked. pairs: of the customer's, as its traces carry them."""
    carried = marks.draw_pairs(key, pairs, forge)
    keyed = marks.keyed_draw(decoy_key, 'which').sample(carried, test.pairs)
    taken = {pair.trigger for pair in carried}
    decoys = marks.draw_pairs(decoy_key, test.pairs * test.decoys, forge, taken)
    order, asked = marks.keyed_draw(decoy_key, 'order'), list[dict[str, Any]]()
    for block, pair in enumerate(keyed):
        members = [pair, *decoys[block * test.decoys : (block + 1) * test.decoys]] * test.repeats
        drawn = order.sample(members, len(members))
        asked += [{'pair': list(one), 'keyed': one == pair, 'block': block} for one in drawn]
    return asked


def ask(path: epath.PathLike, suspect: Suspect, tell: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Asks what is left of a case, batch by batch. Stopped at any moment it goes on with the batch that it was at; what
    failed in a way that may have passed is asked again.

    Raises InputError where another suspect answered before, WorkdirError while another process asks.
    """
    directory, plan = files.path_of(path), read_plan(path)
    place = directory / 'answers'
    with contextlib.ExitStack() as stack:
        with files.os_errors(StorageError, f'case {path} cannot be written'):
            lock = locks.acquire(directory / 'ask.lock', f'case {path}')
            stack.callback(lock.release)
            files.make_private_dir(place)
            _claim(directory, suspect)
        cut_torn_tails(place, OWNER)
        known = {int(id_) for id_, one in _answers(place)[0].items() if one['problem'] not in PASSING}
        left = [i for i in range(len(plan['asked'])) if i not in known]
        journal = stack.enter_context(contextlib.closing(Journal(place, OWNER)))
        for start in range(0, len(left), BATCH):
            batch = left[start : start + BATCH]
            asked = [plan['asked'][i] for i in batch]
            answers = suspect.ask(questions(asked))
            lines = [
                {'format_version': FORMAT_VERSION, 'request_id': str(i), 'asked': locks.utc_now()}
                | dataclasses.asdict(answer)
                for i, answer in zip(batch, answers, strict=True)
            ]
            journal.append([to_json(line) for line in lines])
            tell(len(plan['asked']) - len(left) + start + len(batch), len(plan['asked']))


def _claim(directory: epath.Path, suspect: Suspect) -> None:
    """Writes down which model answers, and how it is spoken to. Raises InputError where it was otherwise."""
    place, spoken = directory / SUSPECT, suspect.spoken
    ours = {'format_version': FORMAT_VERSION, 'identity': suspect.identity, 'spoken': spoken}
    files.write_first(place, json.dumps(ours).encode())
    theirs = _read_suspect(directory)
    if theirs['identity'] != suspect.identity:
        raise InputError(
            f'case {directory} is answered by {theirs["identity"]!r} and this is {suspect.identity!r}; ask the same, '
            'or commit to another case'
        )
    if theirs.get('spoken', spoken) != spoken:  # earlier versions did not write it
        raise InputError(
            f'case {directory} speaks to the model in another way; give the --config that its questions were asked '
            'with, or commit to another case'
        )


def answered_by(directory: epath.Path) -> str:
    """Which model answers, '' before any does."""
    return _read_suspect(directory)['identity'] if files.exists(directory / SUSPECT) else ''


def _read_suspect(directory: epath.Path) -> dict[str, Any]:
    return read_object(directory / SUSPECT, ('identity',), InputError, 'restore it')


def _answers(place: epath.Path) -> tuple[dict[int, dict[str, Any]], str]:
    """Number in the plan -> the last answer; and when the first of all was asked for, '' where none was."""
    found, first = dict[int, dict[str, Any]](), ''
    for where, record in read_records(place):
        with malformed(f'{where} is no answer', 'restore the file or delete that line'):
            found[int(record['request_id'])] = {name: str(record[name]) for name in ('text', 'problem', 'asked')}
            first = min(first or record['asked'], record['asked'])
    return found, first


def has_answers(path: epath.PathLike) -> bool:
    """Whether any question of a case was answered."""
    return any(not one['problem'] for one in _answers(files.path_of(path) / 'answers')[0].values())


def questions(asked: Sequence[dict[str, Any]]) -> list[Question]:
    """Of entries of a plan."""
    return [Question(tuple(one['messages']), Pair(*one['pair']).trigger) for one in asked]


def read_plan(path: epath.PathLike) -> dict[str, Any]:
    """Raises InputError where there is none, or one that is damaged."""
    place = files.path_of(path) / 'plan.json'
    if not files.exists(place):
        raise InputError(f'{path} is no case: it has no plan.json; commit to one first')
    plan = read_object(place, PLAN, InputError, 'restore it, or commit to another case')
    with malformed(f'{place} is damaged', 'restore it, or commit to another case'):
        Trigger(**plan['test']).check()
        questions(plan['asked'])
        _ = bytes.fromhex(plan['seed']), [(one['keyed'], one['block']) for one in plan['asked']]
    return plan


def verdict(path: epath.PathLike, key: bytes, signer: bytes, forge: Forge = marks.symbols) -> dict[str, Any]:
    """Issues the signed verdict on what was answered, and keeps it beside those issued before.

    signer: the 32 bytes of an Ed25519 key. forge: that of the commitment. Raises InputError while answers are missing
    that the test waits for, and where the pairs of the plan are not those that follow from the key and its seed.
    """
    plan, directory = read_plan(path), files.path_of(path)
    answers, first = _answers(directory / 'answers')
    test = Trigger(**plan['test'])
    if len(answers) < len(plan['asked']) and not test.sequential:
        raise InputError(f'{len(answers)} of {len(plan["asked"])} questions were asked; the verdict waits for all')
    _check_drawn(plan, test, key, forge)
    found = test.verdict(blocks(plan, answers))
    committed = _committed(directory, plan, key, first)
    problems = collections.Counter(record['problem'] for record in answers.values() if record['problem'])
    content = {name: plan[name] for name in ('customer', 'epoch', 'suspect', 'test', 'null')} | found._asdict()
    content |= {'commitment': committed, 'exploratory': not committed, 'problems': dict(problems)}
    content |= {'answered_by': answered_by(directory), 'asked': len(answers), 'issued': locks.utc_now()}
    with (
        files.os_errors(StorageError, f'{directory} was not written'),
        verdicts.locked(directory),
    ):
        beside = of_suspect(directory, plan['suspect'], content['answered_by'])
        before, others = verdicts.read(path), [one for issued in beside.values() for one in issued]
        content |= {'issued_before': len(before), 'issued_beside': len(others)}
        with malformed(f'{directory / verdicts.ALONE} holds what is no verdict', 'restore it'):
            content['others'] = [named(one) for one in (*before, *others)]
        signed = verdicts.sign(content | {'summary': summary(content, found)}, signer)
        verdicts.keep(path, [*before, signed])
    return signed


def _check_drawn(plan: dict[str, Any], test: Trigger, key: bytes, forge: Forge) -> None:
    with malformed('the pairs of the plan do not follow from key and seed', 'restore it'):
        drawn = draw(test, plan['pairs'], key, forge, bytes.fromhex(plan['seed']))
    if drawn != [{name: one[name] for name in ('pair', 'keyed', 'block')} for one in plan['asked']]:
        raise InputError(
            'the pairs of the plan do not follow from key and seed: it was changed, or this is another key or the '
            'config of another dataset; give those that were committed with'
        )


def named(signed: dict[str, Any]) -> dict[str, Any]:
    """What another verdict says of this one."""
    return {name: signed['verdict'].get(name) for name in NAMED}


def of_suspect(directory: epath.Path, suspect: str, model: str) -> dict[epath.Path, list[dict[str, Any]]]:
    """Case -> its verdicts on a suspect of that name, or of what the model calls itself; of the cases beside this one
    that have some.
    """
    here, found = files.absolute(directory), dict[epath.Path, list[dict[str, Any]]]()
    for case in sorted(place.parent for place in here.parent.glob(f'*/{verdicts.ALONE}')):
        said = [(one, of) for one in verdicts.read(case) if isinstance(of := one.get('verdict'), dict)]
        own = [one for one, of in said if of.get('suspect') == suspect or (model and of.get('answered_by') == model)]
        if own and case != here:
            found[case] = own
    return found


def blocks(plan: dict[str, Any], answers: Mapping[int, Mapping[str, Any]]) -> list[Block]:
    """The blocks of which everything was asked. answers: number in the plan -> 'text' and 'problem'; what has a problem
    is not completed, keyed or not. A block that may be looked at before others stays open while a problem may pass, and
    stands behind those that were closed before it, by when its last question was 'asked': what was looked at does not
    change.
    """
    hits: dict[int, dict[tuple[bool, Pair], int]] = collections.defaultdict(lambda: collections.defaultdict(int))
    waits = PASSING if plan['test'].get('sequential') else ()
    known = {i for i, one in answers.items() if one['problem'] not in waits}
    open_ = {one['block'] for i, one in enumerate(plan['asked']) if i not in known}
    closed: dict[int, str] = {}
    for i, one in enumerate(plan['asked']):
        if one['block'] not in open_:
            if waits:
                closed[one['block']] = max(closed.get(one['block'], ''), answers[i].get('asked', ''))
            pair = Pair(*one['pair'])
            hit = not answers[i]['problem'] and marks.completes(answers[i]['text'], pair)
            hits[one['block']][one['keyed'], pair] += hit
    return [
        Block(
            sum(count for (keyed, _), count in of.items() if keyed),
            tuple(count for (keyed, _), count in of.items() if not keyed),
        )
        for _, of in sorted(hits.items(), key=lambda item: (closed.get(item[0], ''), item[0]))
    ]


def _committed(directory: epath.Path, plan: dict[str, Any], key: bytes, first: str) -> str:
    """The hash, where plan and key are those committed to before the first answer; '' otherwise."""
    place = directory / 'commitment.json'
    if not files.exists(place):
        return ''
    fix = 'restore it, or delete it for an exploratory verdict'
    record = read_object(place, ('hash', 'committed'), InputError, fix)
    before = not first or str(record['committed']) <= first
    return record['hash'] if before and record['hash'] == commitment(plan, key) else ''


def summary(content: dict[str, Any], found: Verdict) -> str:
    """What the evidence supports and what it does not, in plain language."""
    asked = (
        f'Asked for definitions that only traces of customer {content["customer"]} (epoch {content["epoch"]}) carry, '
        f'{content["suspect"]} completed {found.keyed_hits} of {found.keyed}; asked for others of the same kind, that '
        f'no trace carries, {found.decoy_hits} of {found.decoys}.'
    )
    if content['problems']:
        causes = ', '.join(f'{count} {problem}' for problem, count in sorted(content['problems'].items()))
        count = sum(content['problems'].values())
        asked += f' Of {content["asked"]} questions {count} got no answer ({causes}) and count as not completed.'
    level = f'{content["test"]["level"]:.2g}'
    if found.detected:
        says = (
            f' So many by chance would happen less often than {level} of the time. This supports that the model was '
            'trained on text that carries this mark. It does not say who collected that text, by which path it got '
            'there, or that a licence was broken.'
        )
    else:
        says = (
            f' That is no evidence, at level {level}, that the model was trained on text that carries this mark. It is '
            'no evidence of the contrary either.'
        )
    null = f' What it is held against: {content["null"]}.'
    outcomes = '; '.join(
        f'{one["customer"]} (epoch {one["epoch"]}) {"found" if one["detected"] else "not found"}'
        for one in content['others']
    )
    before = (
        f' Verdicts issued before: {content["issued_before"]} of this case, {content["issued_beside"]} on this suspect '
        f'in cases beside it{f" ({outcomes})" if outcomes else ""}; the level is of one.'
    )
    explores = ' Nothing was committed to beforehand: this is exploratory.' if content['exploratory'] else ''
    return asked + says + null + before + explores
