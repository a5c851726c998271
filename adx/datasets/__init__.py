"""The menu of datasets. To add one: a file in this folder, a line here."""

from __future__ import annotations

from adx.datasets.arithmetic import Arithmetic
from adx.datasets.competition_math import CompetitionMath
from adx.datasets.gsm8k import Gsm8k
from adx.datasets.jsonl import Jsonl
from adx.datasets.mbpp import Mbpp
from adx.datasets.mmlu import Mmlu

MENU: dict[str, type] = {
    'gsm8k': Gsm8k,
    'math': CompetitionMath,
    'mmlu': Mmlu,
    'mbpp': Mbpp,
    'jsonl': Jsonl,
    'arithmetic': Arithmetic,
}
