"""Lists what adx depends on, with licences, and asks pip-audit for known vulnerabilities.

    python -m tools.audit [--required]

Without pip-audit, or where its service cannot be reached, it says so and exits with 0: a build without a network does
not fail. With --required pip-audit must be installed, as continuous integration wants it. Exit codes: 0 done or not
asked, 2 flags or no pip-audit, 3 a licence that does not fit, a vulnerability.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from typing import Any

from absl import flags
from packaging.requirements import Requirement

from adx.errors import ConfigError, InputError, extra
from launch import program

_REQUIRED = flags.DEFINE_bool('required', False, 'Fail where pip-audit is not installed.', allow_override=True)

SECONDS = 120
ASK = (sys.executable, '-m', 'pip_audit', '--local', '--format=json', '--progress-spinner=off')
FITS = re.compile(r'Apache|\bMIT\b|BSD|ISC|PSF|Python Software|MPL|Mozilla|Zlib|CC0|Unlicense', re.I)
FITS_NOT = re.compile(r'\bA?GPL|Affero|proprietary|non-?commercial|SSPL|\bBUSL\b', re.I)


def dependencies(name: str = 'adx') -> dict[str, importlib.metadata.Distribution]:
    """Everything that is installed because of a package, its extras left out, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    names = [name]
    while names:
        key = re.sub(r'[-_.]+', '-', names.pop()).lower()
        if key in found:
            continue
        found[key] = importlib.metadata.distribution(key)
        needed = map(Requirement, found[key].requires or ())
        names += [one.name for one in needed if one.marker is None or one.marker.evaluate({'extra': ''})]
    return dict(sorted(found.items()))


def licence(package: importlib.metadata.Distribution) -> str:
    """As the package states it; '' where it does not."""
    about: Any = package.metadata
    classified = [text.split(' :: ')[-1] for text in about.get_all('Classifier') or () if text.startswith('License ::')]
    stated = (about.get('License') or '').strip().split('\n')[0]
    return about.get('License-Expression') or '; '.join(classified) or stated


def misfits(licences: dict[str, str]) -> list[str]:
    """The packages whose licence is not known to fit Apache-2.0."""
    return [f'{name}: {text or "none stated"}' for name, text in licences.items()
            if not FITS.search(text) or FITS_NOT.search(text)]  # fmt: skip


def vulnerabilities(reply: str) -> list[str] | None:
    """'name version: ids' of what pip-audit found, from its JSON; None where that is no reply of it."""
    try:
        packages = json.loads(reply)['dependencies']
        return [
            f'{one["name"]} {one["version"]}: {", ".join(each["id"] for each in one["vulns"])}'
            for one in packages if one.get('vulns')
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return None


def unknown(reply: str) -> tuple[list[str], int]:
    """(the packages that the service does not know, adx itself left out; how many there are), of a reply that can be
    read: pip-audit takes such packages for sound."""
    packages = [one for one in json.loads(reply)['dependencies'] if one['name'] != 'adx']
    return [one['name'] for one in packages if 'skip_reason' in one], len(packages)


def ask() -> tuple[list[str] | None, str]:
    """(what pip-audit found, and what is to be said with it), or None and why it could not be asked."""
    if importlib.util.find_spec('pip_audit') is None:
        missing = f'pip-audit is not installed; {extra("audit")}'
        if _REQUIRED.value:
            raise ConfigError(f'--required: {missing}')
        return None, missing
    try:
        done = subprocess.run(ASK, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return None, f'pip-audit did not answer within {SECONDS} s'
    last = (done.stderr.strip().splitlines() or ['no output'])[-1]
    found = vulnerabilities(done.stdout)
    if found is None:
        return None, f'pip-audit could not ask its service: {last}'
    names, count = unknown(done.stdout)
    if count and len(names) == count:
        return None, f'the service of pip-audit knows none of the {count} packages'
    return found, f', which does not know {len(names)} of the packages: {", ".join(names)}' if names else ''


def main() -> None:
    packages = dependencies()
    licences = {name: licence(package) for name, package in packages.items()}
    for name, package in packages.items():
        print(f'{name} {package.version}: {licences[name] or "no licence stated"}')
    if wrong := misfits(licences):
        raise InputError(f'licences that are not known to fit Apache-2.0: {"; ".join(wrong)}; replace the packages')
    found, why = ask()
    if found:
        raise InputError(f'known vulnerabilities: {"; ".join(found)}; upgrade the packages')
    print(f'vulnerabilities: not asked, {why}' if found is None else f'vulnerabilities: none known to pip-audit{why}')


if __name__ == '__main__':
    program.start(main)
