"""Device-hours and money by hand, and 'unknown' where something is not known."""

from __future__ import annotations

import datetime
import json
import pathlib

import pytest

from adx.errors import ConfigError, InputError
from launch import costs
from launch.config import load_config
from launch.costs import Fleet, Price, Tokens
from launch.tpus import GENERATIONS
from tests import tiny

FLEET = Fleet('v5e', 16, 16, 'us-west4', 'on_demand')
PRICE = Price(1.2, '2025-03')
TOKENS = Tokens(7_200_000, '10 prompts')


def write(path: pathlib.Path, *rows: dict) -> str:
    row = {'unit': 'v5e', 'region': 'us-west4', 'provisioning': 'spot', 'usd_per_hour': 0.5, 'date': '2026-01'}
    table = {'source': 'an invoice', 'date': '2026-01', 'prices': [row | one for one in rows]}
    path.write_text(json.dumps(table))
    return str(path)


def test_an_upper_bound_by_hand():
    """7.2 million tokens, two shards of 1000 tokens a second: one hour of 16 chips at 1.20."""
    requests, hours, cost = costs.estimate(TOKENS, FLEET, 2, 1000.0, PRICE)
    assert requests == 'requests: 10 prompts, at most 7200000 tokens'
    assert hours == 'device-hours: at most 16 (1 hours x 16 devices)'
    assert cost.startswith('cost: at most 19.20 USD; 1.2 USD an hour of each v5e in us-west4, on_demand')
    assert '2025-03, which you must check' in cost


@pytest.mark.parametrize(
    ('tokens', 'speed', 'price', 'unknown'),
    [
        (TOKENS, 0.0, PRICE, {'device-hours', 'cost'}),
        (TOKENS, 1000.0, None, {'cost'}),
        (TOKENS, 0.0, None, {'device-hours', 'cost'}),
        ('no data', 1000.0, PRICE, {'requests', 'device-hours', 'cost'}),
    ],
)
def test_nothing_is_guessed(tokens, speed, price, unknown):
    lines = dict(line.split(': ', 1) for line in costs.estimate(tokens, FLEET, 2, speed, price))
    assert {name for name, text in lines.items() if text.startswith('unknown')} == unknown


def test_requests_are_counted_through_the_config(tmp_path):
    config = tiny.write_config(tmp_path / 'config.py', tiny.write_teacher(tmp_path / 'teacher'))
    experiment = load_config(config)
    found = costs.count_tokens(experiment, ['generate'])
    prompts = len(experiment.dataset.prompts(experiment.split)[: experiment.limit or None])
    assert found.count == prompts * experiment.samples * len(experiment.arms) * experiment.max_new_tokens
    assert costs.count_tokens(experiment, ['generate', 'distil']) == 'stage distil is not counted'


def test_a_study_counts_its_seeds():
    study = load_config('configs/testbed_small.py')
    one = costs.count_tokens(study.experiment, ['generate'])
    assert len(study.seeds) > 1
    assert costs.count_tokens(study, ['generate']).count == len(study.seeds) * one.count


def test_data_that_is_not_here_is_unknown(tmp_path):
    teacher = tiny.write_teacher(tmp_path / 'teacher')
    config = tiny.write_config(tmp_path / 'config.py', teacher, dataset="Gsm8k(path='/nowhere')")
    assert costs.count_tokens(load_config(config), ['generate']).startswith('the prompts cannot be read here')


def test_listed_prices_say_when_where_and_in_which_capacity():
    table = json.loads(costs.LISTED.read_text())
    assert 'check them' in table['source']
    datetime.date.fromisoformat(table['date'])
    units = {generation.unit for generation in GENERATIONS.values()}
    keys = [(row['unit'], row['region'], row['provisioning']) for row in table['prices']]
    assert len(set(keys)) == len(keys)
    for row in table['prices']:
        datetime.date.fromisoformat(f'{row["date"]}-01'[:10])
        assert row['unit'] in units or '-' in row['unit']
        assert row['provisioning'] in ('on_demand', 'spot')
        assert costs.find_price(str(costs.LISTED), Fleet(row['unit'], 1, 1, row['region'], row['provisioning'])).usd > 0


def test_a_file_of_ones_own(tmp_path):
    path = write(tmp_path / 'prices.json', {}, {'unit': 'v6e', 'usd_per_hour': 3})
    assert costs.find_price(path, Fleet('v5e', 1, 1, 'us-west4', 'spot')) == Price(0.5, '2026-01')
    for unit, region, provisioning in (
        ('v5e', 'us-west4', 'on_demand'), ('v5e', 'us-east1', 'spot'), ('v5e', 'us-west4', 'reservation'), ('', '', '')
    ):  # fmt: skip
        assert costs.find_price(path, Fleet(unit, 1, 1, region, provisioning)) is None


@pytest.mark.parametrize('text', ['', '[]', '{"prices": 3}', '{"prices": [{"unit": "v5e"}]}', '{"source": "x"}'])
def test_what_is_no_price_file_is_refused(tmp_path, text):
    path = tmp_path / 'prices.json'
    path.write_text(text)
    with pytest.raises(InputError, match=r'has the form of launch/prices\.json'):
        costs.find_price(str(path), FLEET)


@pytest.mark.parametrize('rows', [[{'usd_per_hour': -1}], [{'usd_per_hour': 0}], [{}, {}]])
def test_prices_that_cannot_be_are_refused(tmp_path, rows):
    path = write(tmp_path / 'prices.json', *rows)
    with pytest.raises(InputError, match='one positive price'):
        costs.find_price(path, Fleet('v5e', 1, 1, 'us-west4', 'spot'))


def test_a_budget_holds_for_all_attempts_together():
    """What is spent if every attempt takes half an hour to start and runs out its share is the budget."""
    hours = costs.hours_within(100.0, FLEET, PRICE, 4 * 0.5)
    share = costs.hours_of_attempt(hours, 4)
    assert (0.5 + share) * 4 * FLEET.units * PRICE.usd == pytest.approx(100.0)


def test_a_budget_without_a_price_or_too_small_is_refused():
    with pytest.raises(ConfigError, match='--max_usd=5 needs a price; no price of v5e in us-west4'):
        costs.hours_within(5.0, FLEET, None)
    with pytest.raises(ConfigError, match=r'give each of 11 attempts 1\.4 minutes'):
        costs.hours_of_attempt(costs.hours_within(5.0, FLEET, PRICE), 11)
    with pytest.raises(ConfigError, match=r'--max_usd=5 pays for 0\.26 hours and starting alone may take 5\.50'):
        costs.hours_within(5.0, FLEET, PRICE, 5.5)
