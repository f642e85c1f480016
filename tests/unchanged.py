"Check that the notebooks are clean and the modules are what the notebooks export; exit 1 with the difference."
import shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = 'nbs', 'gear_fastai', 'pyproject.toml', 'settings.ini'


def ignore(folder, names):
    if Path(folder) == ROOT: return [n for n in names if n not in PARTS]
    return [n for n in names if n == '__pycache__']


def difference(part, copy):
    command = ['diff', '-r', '-x', '__pycache__', '-x', '.last_checked', ROOT/part, copy/part]
    return subprocess.run(command, capture_output=True, text=True).stdout


with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp)/'copy'
    shutil.copytree(ROOT, copy, ignore=ignore)
    if not (copy/'pyproject.toml').exists(): sys.exit('no pyproject.toml')
    for command in ('nbdev-clean', 'nbdev-export'):
        subprocess.run([Path(sys.executable).parent/command], cwd=copy, check=True)
    changed = ''.join(difference(part, copy) for part in ('nbs', 'gear_fastai'))
if changed: sys.exit(f'run `make export` and commit its changes:\n{changed[:4000]}')
print('notebooks are clean, modules are up to date')
