"Are the notebooks clean, and are the modules what the notebooks export? Works on a copy; exits 1 with the difference."
import shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).parent.parent
with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp)/'copy'
    shutil.copytree(root, copy, ignore=lambda d, names: [n for n in names if n not in ('nbs', 'gear_fastai', 'pyproject.toml', 'settings.ini')] if Path(d) == root else
                    [n for n in names if n == '__pycache__'])
    (copy/'pyproject.toml').exists() or sys.exit('no pyproject.toml')
    for command in ('nbdev-clean', 'nbdev-export'): subprocess.run([Path(sys.executable).parent/command], cwd=copy, check=True)
    changed = [d for part in ('nbs', 'gear_fastai')
               if (d := subprocess.run(['diff', '-r', '-x', '__pycache__', '-x', '.last_checked', root/part, copy/part], capture_output=True, text=True).stdout)]
if changed: sys.exit('run `make export` and commit what it changes:\n' + '\n'.join(changed)[:4000])
print('notebooks are clean, modules are as exported')
