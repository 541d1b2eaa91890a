"""Write `constraints.txt`: the versions in this environment, which is the one that the tests passed in.

`python tools/lock.py` writes it, `python tools/lock.py --check` says what differs. The build of torch is
left open (`2.13.0`, not `2.13.0+cpu`), and NVIDIA's packages are pinned by torch itself: it serves CPU and CUDA."""
import re
import sys
from importlib.metadata import distributions, version
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT/'constraints.txt'
NOTE = '# made by tools/lock.py from the environment that the tests passed in; read by tools/install.sh\n'
OWN_PINS = re.compile(r'nvidia-|cuda-|triton$') # torch pins them
OLDEST = '3.11.2' # the Python of Debian 12, in which the versions have to be installable


def torchvision_of(torch:str)->str:
    "Return the release of torchvision that was built beside one of torch: 0.28 for 2.13, with the same last number"
    major, minor, patch = map(int, torch.split('+')[0].split('.')[:3])
    if major != 2: raise SystemExit(f'which torchvision belongs to torch {torch} is not known here')
    return f'0.{minor + 15}.{patch}'


def pins()->dict:
    "Collect the versions of all packages here but this one and pip; name -> version without a local part"
    found = {d.metadata['Name'].lower().replace('_', '-'): d.version.split('+')[0] for d in distributions()}
    found = {k: v for k,v in found.items() if k not in ('lmnotes', 'pip') and not OWN_PINS.match(k)}
    return found | dict(torchvision=torchvision_of(version('torch')))


def too_new()->list:
    "List the packages here that the oldest supported Python cannot have"
    asked = {d.metadata['Name']: d.metadata.get('Requires-Python') or '' for d in distributions()}
    return sorted(f'{name} {version(name)} needs Python {range_}, not {OLDEST}; install an older one'
                  for name,range_ in asked.items() if not SpecifierSet(range_).contains(OLDEST))


def constraints()->str:
    "Write the pins as lines that pip reads"
    return NOTE + ''.join(f'{name}=={v}\n' for name,v in sorted(pins().items()))


def differences()->list:
    "List the lines of the file that this environment does not bear out, and those that are missing there"
    there, here = (set(text.splitlines()) for text in (FILE.read_text(encoding='utf-8'), constraints()))
    return sorted(f'{"file" if line in there else "here"}: {line}' for line in there ^ here)


def main()->int:
    "Write or check, and return the exit code"
    if found := too_new(): raise SystemExit('\n'.join(found))
    if '--check' not in sys.argv:
        FILE.write_text(constraints(), encoding='utf-8')
        return 0
    for line in (found := differences()): print(line)
    return int(bool(found))


if __name__ == '__main__': sys.exit(main())
