"""Makes and checks the keys that marks follow from; prints nothing but fingerprints.

    python -m tools.keys --do=new --master=DIR/master.key
    python -m tools.keys --do=derive --master=DIR/master.key --directory=KEYS --customer=acme --epoch=1
    python -m tools.keys --do=rotate --master=DIR/master.key --directory=KEYS --customer=acme
    python -m tools.keys --do=check --directory=KEYS --customer=acme

Exit codes: 0 done, 2 flags, 3 a key that cannot be used.
"""

from __future__ import annotations

from absl import flags

from adx import keys
from adx.errors import ConfigError
from launch import program

_DO = flags.DEFINE_string('do', None, 'What to do: new, derive, rotate or check.', allow_override=True)
_MASTER = flags.DEFINE_string('master', '', 'The file of the master key.', allow_override=True)
_DIRECTORY = flags.DEFINE_string('directory', '', "Where customers' keys are.", allow_override=True)
_CUSTOMER = flags.DEFINE_string('customer', '', 'Whose key.', allow_override=True)
_EPOCH = flags.DEFINE_integer('epoch', 1, 'Of the key that is derived.', lower_bound=1, allow_override=True)
NEEDS = {
    'new': ('master',), 'derive': ('master', 'directory', 'customer'), 'rotate': ('master', 'directory', 'customer'),
    'check': ('directory', 'customer'),
}  # fmt: skip


def main() -> None:
    given = {'master': _MASTER.value, 'directory': _DIRECTORY.value, 'customer': _CUSTOMER.value}
    if _DO.value not in NEEDS:
        raise ConfigError(f'--do={_DO.value} is not allowed; it must be one of {tuple(NEEDS)}')
    for name in NEEDS[_DO.value]:
        if not given[name]:
            raise ConfigError(f'--do={_DO.value} needs --{name}')
    master, directory, customer = given.values()
    if _DO.value == 'new':
        keys.new(master)
        print(f'{master}: master key {keys.fingerprint(keys.read(master))}; keep it off the machines that mark')
    elif _DO.value == 'check':
        for epoch in keys.epochs(directory, customer):
            path = keys.place(directory, customer, epoch)
            print(f'{path}: epoch {epoch}, key {keys.fingerprint(keys.read(path))}')
        if not keys.epochs(directory, customer):
            raise ConfigError(f'{directory} has no key of {customer!r}; derive one')
    else:
        rotates = _DO.value == 'rotate'
        of = master, directory, customer
        path = keys.rotate(*of) if rotates else keys.derive(*of, _EPOCH.value)
        print(f'{path}: key {keys.fingerprint(keys.read(path))}')


if __name__ == '__main__':
    program.start(main)
