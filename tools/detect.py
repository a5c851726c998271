"""Was a suspect trained on a customer's marks? Commit, ask, and a signed verdict.

    python -m tools.detect --do=commit --case=DIR --customer=acme --epoch=1 --suspect=model-x --config=configs/C.py
    python -m tools.detect --do=ask --case=DIR --model=NAME_OR_PATH           # or --url=http://HOST/v1 --api_model=M
    python -m tools.detect --do=verdict --case=DIR --signer=signer.key        # made by tools.keys --do=new
    python -m tools.detect --do=attribute --cases=DIR,DIR --signer=signer.key   # one verdict on several cases
    python -m tools.detect --do=check --case=DIR --public_key=HEX

The customer's key is read from the directory that ADX_KEYS names. --config: whose dataset the marked traces were of;
conversations of its split `tune` stand before what is asked. `ask --model` takes its prompting, where it is given, and
`verdict` its generator of pairs, which it needs where the dataset has one of its own. Exit codes: 0 done, 2 flags, 3
input, 4 a case that another process asks, 74 storage.
"""

from __future__ import annotations

import json
from typing import Any

from absl import flags

from adx import attributing, detecting, drafting, keys, marks, suspects, verdicts
from adx.datasets.chat import Prompting
from adx.detectors.trigger import Trigger
from adx.errors import ConfigError, InputError
from adx.experiment import Experiment
from adx.rewriters.marked import Marked
from adx.settings import ModelSource
from launch import program
from launch.config import load_experiment
from launch.progress import Progress

_DO = flags.DEFINE_string('do', None, 'What to do: commit, ask, verdict, attribute or check.', allow_override=True)
_CASE = flags.DEFINE_string('case', '', 'The directory of the case.', allow_override=True)
_CASES = flags.DEFINE_list('cases', [], 'Attribute: cases, of one suspect or several.', allow_override=True)
_CUSTOMER = flags.DEFINE_string('customer', '', 'Whose marks.', allow_override=True)
_EPOCH = flags.DEFINE_integer('epoch', 1, 'Of its key.', lower_bound=1, allow_override=True)
_SUSPECT = flags.DEFINE_string('suspect', '', 'What the verdict calls the suspect.', allow_override=True)
_CONFIG = flags.DEFINE_string('config', None, 'The config whose traces were marked.', allow_override=True)
_KEYED = flags.DEFINE_integer('keyed', 10, 'Keyed pairs that are asked, of those in traces.', allow_override=True)
_DECOYS = flags.DEFINE_integer('decoys', 10, 'Decoys beside each.', allow_override=True)
_TIMES = flags.DEFINE_integer('times', 2, 'How often each is asked, behind other questions.', allow_override=True)
_LEVEL = flags.DEFINE_float('level', 0.01, 'Of false alarms.', allow_override=True)
_SEQUENTIAL = flags.DEFINE_bool('sequential', False, 'A test that may be looked at early.', allow_override=True)
_MODEL = flags.DEFINE_string('model', '', 'The suspect: a directory, a file or a name.', allow_override=True)
_URL = flags.DEFINE_string('url', '', 'Or its OpenAI-compatible address.', allow_override=True)
_API_MODEL = flags.DEFINE_string('api_model', '', 'What the endpoint calls it.', allow_override=True)
_API_KEY = flags.DEFINE_string('api_key_variable', '', 'Environment variable with its token.', allow_override=True)
_SIGNER = flags.DEFINE_string('signer', '', 'Key file that signs the verdict.', allow_override=True)
_PUBLIC = flags.DEFINE_string('public_key', '', 'Whose signature is checked.', allow_override=True)
QUESTIONS = 64  # conversations, in turn


def main() -> None:
    doing = {'commit': _commit, 'ask': _ask, 'verdict': _verdict, 'attribute': _attribute, 'check': _check}
    if _DO.value not in doing or not (_CASE.value or _DO.value == 'attribute'):
        raise ConfigError(f'--do={_DO.value} with --case={_CASE.value!r}; both are needed, --do one of {tuple(doing)}')
    doing[_DO.value]()


def experiment_of_config() -> Experiment:
    """Of a config that defines an experiment, or a study over several seeds."""
    if not _CONFIG.value:
        raise ConfigError('--config is needed: the one whose traces were marked')
    return load_experiment(_CONFIG.value)


def carried(experiment: Experiment, customer: str, epoch: int) -> int:
    """How many pairs the customer's traces carry, by the config that marked them; else as many as Marked has itself.

    Raises ConfigError where its rewrites differ.
    """
    rewriters = [drafting.innermost(one.rewriter) for one in experiment.rewrites]
    marked = [one for one in rewriters if isinstance(one, Marked) and (one.customer, one.epoch) == (customer, epoch)]
    found = {one.pairs for one in marked} or {Marked(customer).pairs}
    if len(found) > 1:
        raise ConfigError(f'the config marks traces of {customer} with {sorted(found)} pairs; name one with one number')
    return found.pop()


def _commit() -> None:
    if not (_CUSTOMER.value and _SUSPECT.value):
        raise ConfigError('--do=commit needs --customer and --suspect')
    experiment = experiment_of_config()
    dataset = experiment.dataset
    questions = tuple(prompt.messages for prompt in dataset.prompts('tune')[:QUESTIONS])
    test = Trigger(_KEYED.value, _DECOYS.value, _LEVEL.value, _SEQUENTIAL.value, _TIMES.value)
    pairs = carried(experiment, _CUSTOMER.value, _EPOCH.value)
    case = detecting.Case(_CUSTOMER.value, _EPOCH.value, _SUSPECT.value, questions, test, pairs)
    key = keys.served(case.customer, case.epoch)
    digest = detecting.commit(case, _CASE.value, key, _forge())
    print(f'committed: {digest}; deposit this hash before anything is asked')


def _forge() -> marks.Forge:
    """The dataset's generator of pairs; without a config that of datasets that have none."""
    return getattr(experiment_of_config().dataset, 'forge', marks.symbols) if _CONFIG.value else marks.symbols


def _ask() -> None:
    detecting.read_plan(_CASE.value)
    if bool(_MODEL.value) == bool(_URL.value):
        raise ConfigError('--do=ask needs either --model or --url')
    if _URL.value:
        suspect: suspects.Suspect = suspects.Endpoint(
            _URL.value, _API_MODEL.value, _API_KEY.value, has_answered=detecting.has_answers(_CASE.value)
        )
    else:
        prompting = experiment_of_config().prompting if _CONFIG.value else Prompting()
        suspect = suspects.Held.load(ModelSource(_MODEL.value), prompting)
    progress = Progress()
    detecting.ask(_CASE.value, suspect, lambda done, total: progress.steps('questions', 'suspect', done, total))
    progress.close()


def _verdict() -> None:
    plan = detecting.read_plan(_CASE.value)
    key = keys.served(plan['customer'], plan['epoch'])
    _show(detecting.verdict(_CASE.value, key, _signing_key(), _forge()))


def _attribute() -> None:
    if len(_CASES.value) < 2:
        raise ConfigError(f'--do=attribute has --cases={",".join(_CASES.value)}; give at least two')
    _show(attributing.attribute(_CASES.value, _signing_key()))


def _signing_key() -> bytes:
    if not _SIGNER.value:
        raise ConfigError(f'--do={_DO.value} needs --signer; make one with python -m tools.keys --do=new')
    return keys.read(_SIGNER.value)


def _show(signed: dict[str, Any]) -> None:
    print(json.dumps(signed, indent=2))
    print(signed['verdict']['summary'])


def _check() -> None:
    signed = [one for name in (verdicts.ALONE, verdicts.JOINT) for one in verdicts.read(_CASE.value, name)]
    if not signed:
        raise InputError(f'{_CASE.value} has no verdict; none was issued')
    broken = [i for i, one in enumerate(signed) if not verdicts.is_signed(one, _PUBLIC.value)]
    if broken:
        raise InputError(f'verdicts {broken} of {_CASE.value} are not what the holder of {_PUBLIC.value!r} signed')
    print(f'{len(signed)} verdicts of {_CASE.value} are as they were signed')


if __name__ == '__main__':
    program.start(main)
