"""Secrets travel as references; this finds what looks like a value."""

from __future__ import annotations

import re
from collections.abc import Iterable

from adx.errors import ConfigError

NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')
SECRET_NAME = re.compile(r'(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$', re.IGNORECASE)
SECRET_MANAGER = (r'projects/[-a-z0-9.:]+/secrets/[-\w]+/versions/(latest|\d+)', 'projects/P/secrets/S/versions/1')
# How tokens of well-known services begin, and runs of 32 letters and digits or more that have both.
SECRET_VALUE = re.compile(
    r'\b(hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA|AIza|ya29\.|eyJ)[A-Za-z0-9_\-.]{8}|-----BEGIN'
    r'|(?<![A-Za-z0-9+/_-])(?=[A-Za-z0-9+]*[0-9])(?=[A-Za-z0-9+]*[A-Za-z])[A-Za-z0-9+]{32,}={0,2}(?![A-Za-z0-9+/=_-])'
)


def refuse_secrets(flag: str, texts: Iterable[str]) -> None:
    """Raises ConfigError, which shows nothing of it, where a text looks like a secret's value."""
    for text in texts:
        if SECRET_VALUE.search(text):
            raise ConfigError(f'--{flag} holds what looks like a secret; give a reference to it by --secret instead')


def parse_environment(given: Iterable[str]) -> dict[str, str]:
    """NAME=value pairs. Raises ConfigError for other forms and for what looks like a secret."""
    variables = {}
    for text in given:
        name, equals, value = text.partition('=')
        if not equals or not NAME.fullmatch(name):
            raise ConfigError('an --env has no name or no "="; write --env=NAME=value')
        if SECRET_NAME.search(name):
            raise ConfigError(f'--env={name}=... is named like a secret; give a reference by --secret={name}:REFERENCE')
        refuse_secrets(f'env={name}=...', [value])
        variables[name] = value
    return variables


def parse_references(given: Iterable[str], pattern: str, example: str) -> dict[str, str]:
    """NAME:reference pairs. Raises ConfigError, which shows no reference, where one does not match the pattern.

    example: how a reference looks; '' where the service has none.
    """
    found = {}
    for text in given:
        name, colon, reference = text.partition(':')
        shown = name if colon and NAME.fullmatch(name) else 'NAME'  # anything else may be a value
        if not example:
            raise ConfigError(f'--secret={shown}:... has nowhere to go here; launch/README.md says where it has')
        if not colon or not NAME.fullmatch(name) or not re.fullmatch(pattern, reference):
            raise ConfigError(
                f'--secret={shown}:... is not allowed: it names where a secret is and never holds its value; '
                f'write --secret={shown}:{example}'
            )
        refuse_secrets(f'secret={shown}:...', [reference])
        found[name] = reference
    return found
