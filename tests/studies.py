"""A study of tiny random students, and traces that nobody decoded: what studies are tested with."""

from __future__ import annotations

import itertools
import random

from adx import checkpoints, directions
from adx import experiment as experiments
from adx.attacks import Attack
from adx.attacks.mixing import MixClean
from adx.datasets import Arithmetic
from adx.datasets import arithmetic_problems as problems
from adx.datasets.tokenizing import load_tokenizer
from adx.decoding.engine import DecodeConfig
from adx.defences import ProductOfExperts
from adx.experiment import Arm, Experiment, ModelSource
from adx.models.transformer import TransformerConfig, make_model
from adx.optimising import Recipe
from adx.storage import Workdir
from adx.study import Student, Study
from adx.study_traces import seed_path
from adx.types import Trace
from tools.train_testbed import write_tokenizer

SMALL = TransformerConfig(
    vocab_size=100, num_layers=1, embed_dim=16, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=8, max_length=256,
    tied=False,
)  # fmt: skip
DATASET = Arithmetic(steps=(1, 1), distractors=0, size=24)
PLAIN, STRANGE = 'Bob: Tom minus Ann is Tom: 7 minus Ann: 3 so Bob: 4', 'check 1 plus 1 is 2'


def write_students(directory):
    """Directories of two random students."""
    paths = []
    for seed in range(2):
        path = directory / f'student-{seed}'
        model = make_model(SMALL)
        checkpoints.save_hf(str(path), model, model.init(seed), write_tokenizer)
        paths.append(str(path))
    return paths


def make_study(students, **fields):
    experiment = Experiment(
        dataset=DATASET,
        teacher=ModelSource(students[0]),
        proxies=(ModelSource(students[0]),),
        arms=(Arm('plain'), Arm('poe', ProductOfExperts(gamma=0.5))),
        decode=DecodeConfig(slots=8, chunk=4, buckets=(48,), cache_length=64, record='scalars'),
        disclosure='public',
        max_new_tokens=8,
    )
    defaults = {
        'students': tuple(
            Student(name, ModelSource(path), seen=name == 'first')
            for name, path in zip(('first', 'second'), students, strict=False)
        ),
        'attacks': (Attack('sft'), Attack('mixed', (MixClean(fraction=0.5),))),
        'recipe': Recipe(rows=4, length=128),
        'learning_rates': (1e-3, 3e-3),
        'budgets': (2,),
        'seeds': (0, 1),
        'exam': 12,
        'choice': 8,
        'max_new_tokens': 6,
    }
    return Study(experiment, **defaults | fields)


def write_traces(study, path, seeds=None):
    """Every arm's traces of every seed, written without a teacher: the defended arm says something else first."""
    tokenizer = load_tokenizer(study.experiment.teacher.source)
    for seed in study.seeds if seeds is None else seeds:
        experiment = study.of_seed(seed)
        identity, digest = experiments.identity(experiment), experiments.experiment_hash(experiment)
        with Workdir.open(seed_path(path, seed), identity, digest) as workdir:
            for prompt in DATASET.prompts('train'):
                rng = random.Random(f'{seed}{prompt.row}')
                problem = DATASET.draw(random.Random(f'0/train/{prompt.row}'), 'train')
                text = problems.write_solution(rng, problem, problems.PLAIN)
                for arm, sample in itertools.product(('plain', 'poe'), range(experiment.samples)):
                    workdir.append([trace(prompt, arm, text, tokenizer, seed, sample)])


def write_holdout(study, path, seeds=None):
    """Clean holdout traces of every seed, as `--stages=prepare` would have decoded them."""
    tokenizer = load_tokenizer(study.experiment.teacher.source)
    for seed in study.seeds if seeds is None else seeds:
        with Workdir.open(directions.holdout_path(seed_path(path, seed)), {}, 'holdout') as workdir:
            for prompt in DATASET.prompts('holdout')[:6]:
                problem = DATASET.draw(random.Random(f'0/holdout/{prompt.row}'), 'holdout')
                text = problems.write_solution(random.Random(prompt.row), problem, problems.PLAIN)
                workdir.append([trace(prompt, 'plain', text, tokenizer, seed)])


def trace(prompt, arm, text, tokenizer, seed, sample=0):
    text = f'{STRANGE}\n{text}' if arm == 'poe' or sample else text
    tokens = (*tokenizer.encode(text), tokenizer.eos_id)
    id_ = f'arithmetic/{prompt.split}/{prompt.row}/{sample}/{arm}'
    served = {'top_ids': [[i, 0] for i in tokens], 'top_log_probs': [[-0.1, -3.0] for _ in tokens]}
    return Trace(
        id_, prompt.messages, text, text, '', tokens, 'eos', 9, {'type': arm}, {}, seed=seed, gold=prompt.answer,
        statistics=served,
    )  # fmt: skip
