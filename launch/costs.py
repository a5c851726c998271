"""Device-hours and money of a job: a bound of its tokens, a given speed, a list of prices.

What is not known is said to be unknown.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

from absl import flags

from adx import files
from adx.errors import AdxError, ConfigError, InputError, malformed

LISTED = pathlib.Path(__file__).parent / 'prices.json'
LEAST_HOURS = 0.1  # of one attempt: less is spent on starting

PRICES = flags.DEFINE_string('prices', str(LISTED), 'The file of prices, dated; launch/prices.json says the form.')
TOKENS_PER_SECOND = flags.DEFINE_float(
    'tokens_per_second', 0.0, 'Of one shard, as launch.run prints it at its end; 0 is unknown.', lower_bound=0.0
)
MAX_USD = flags.DEFINE_float(
    'max_usd', 0.0, 'Of one submission: stops resumably before so much is spent on starting and running; 0 never.', 0.0
)


@dataclasses.dataclass(frozen=True)
class Fleet:
    """What is paid for: so many units (chips, or machines) of a kind that the price file names; '' is of no known kind.

    devices: of all shards together.
    """

    unit: str
    units: int
    devices: int
    region: str
    provisioning: str


def machine_unit(machine_type: str, gpus: int) -> str:
    """The unit of a machine; none where its GPUs have a price of their own."""
    return '' if gpus and machine_type.startswith('n1-') else machine_type


@dataclasses.dataclass(frozen=True)
class Price:
    usd: float
    date: str


@dataclasses.dataclass(frozen=True)
class Tokens:
    """An upper bound, and how it comes about."""

    count: int
    story: str


def find_price(path: str, fleet: Fleet) -> Price | None:
    """US dollars an hour of one unit; None where the file does not say. Raises InputError for what is no price file."""
    what, fix = f'--prices={path} cannot be used', 'it has the form of launch/prices.json'
    with files.os_errors(InputError, what), malformed(what, fix):
        table = json.loads(pathlib.Path(path).read_text('utf-8'))
        rows = [row for row in table['prices'] if _fits(row, fleet)]
        prices = [Price(float(row['usd_per_hour']), str(row['date'])) for row in rows]
    if any(not 0 < price.usd < math.inf for price in prices) or len(prices) > 1:
        raise InputError(f'--prices={path} must have one positive price of {fleet.unit} in {fleet.region}')
    return prices[0] if prices else None


def _fits(row: Any, fleet: Fleet) -> bool:
    return (row['unit'], row['region'], row['provisioning']) == (fleet.unit, fleet.region, fleet.provisioning)


def count_tokens(experiment: Any, stages: list[str]) -> Tokens | str:
    """Of stage generate; or why it is not known. Reads the prompts, no weights."""
    from adx import generation

    others = [stage for stage in stages if stage != 'generate']
    if others:
        return f'stage {others[0]} is not counted'
    seeds = len(getattr(experiment, 'seeds', (0,)))
    one = getattr(experiment, 'experiment', experiment)
    try:
        prompts = len(generation.read_prompts(one))
    except AdxError as error:
        return f'the prompts cannot be read here: {error}'
    traces = prompts * one.samples * len(one.arms) * seeds
    story = f'{prompts} prompts x {one.samples} samples x {len(one.arms)} arms x {seeds} seeds = {traces} traces'
    return Tokens(traces * one.max_new_tokens, f'{story} of at most {one.max_new_tokens} new tokens')


def estimate(tokens: Tokens | str, fleet: Fleet, shards: int, speed: float, price: Price | None) -> list[str]:
    """Lines for people: requests, device-hours, cost. speed: tokens per second of one shard, 0 unknown."""
    if isinstance(tokens, str):
        return [f'requests: unknown: {tokens}', 'device-hours: unknown', f'cost: unknown; {price_line(fleet, price)}']
    lines = [f'requests: {tokens.story}, at most {tokens.count} tokens']
    if not speed:
        unknown = 'device-hours: unknown; give --tokens_per_second of one shard, which launch.run prints at its end'
        return [*lines, unknown, f'cost: unknown; {price_line(fleet, price)}']
    hours = tokens.count / (speed * shards) / 3600
    lines.append(f'device-hours: at most {hours * fleet.devices:.3g} ({hours:.3g} hours x {fleet.devices} devices)')
    if price is None:
        return [*lines, f'cost: unknown; {price_line(fleet, price)}']
    return [*lines, f'cost: at most {hours * fleet.units * price.usd:.2f} USD; {price_line(fleet, price)}']


def price_line(fleet: Fleet, price: Price | None) -> str:
    what = f'{fleet.unit or "this machine"} in {fleet.region or "no region"}, {fleet.provisioning}'
    if price is None:
        return f'no price of {what}: give --prices'
    return f'{price.usd:g} USD an hour of each {what}: the list price of {price.date}, which you must check'


def hours_within(usd: float, fleet: Fleet, price: Price | None, starting: float = 0.0) -> float:
    """Hours that the programs on all units together may run for so much money, beside `starting` hours.

    Raises ConfigError where the price is unknown or starting takes all of it.
    """
    if price is None:
        raise ConfigError(f'--max_usd={usd:g} needs a price; {price_line(fleet, price)}')
    hours = usd / (fleet.units * price.usd)
    if hours <= starting:
        raise ConfigError(
            f'--max_usd={usd:g} pays for {hours:.2f} hours and starting alone may take {starting:.2f}, half an hour an '
            'attempt; give more, or fewer --shards or --retries'
        )
    return hours - starting


def hours_of_attempt(hours: float, attempts: int) -> float:
    """So that all attempts together keep within the hours. Raises ConfigError where that is too short to be of use.

    An attempt that reaches its share ends as if it was interrupted and the next one continues; the last ends the job.
    """
    share = hours / attempts
    if share < LEAST_HOURS:
        raise ConfigError(
            f'{hours:.2f} hours give each of {attempts} attempts {share * 60:.1f} minutes and starting takes some; '
            'give more --max_usd or --max_hours, or fewer --shards or --retries'
        )
    return share
