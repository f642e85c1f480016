"The package as a whole: metadata, imports, README, wheel, make."
import os, shutil, subprocess, sys, tomllib
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

import pandas as pd, pytest
from packaging.requirements import Requirement

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'tests'))

config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']


def python(code, **kw):
    "Run `code` in a new process and return its output"
    command = [sys.executable, '-W', 'ignore', '-c', code]
    return subprocess.run(command, capture_output=True, text=True, check=True, **kw).stdout.strip()


def test_metadata_is_written_once():
    "The installed package has the metadata of settings.ini, and pyproject.toml has none"
    dist = distribution('gear_fastai')
    assert dist.version == cfg['version'] and dist.metadata['Summary'] == cfg['description']
    required = {r for r in map(Requirement, dist.requires) if not r.marker}
    assert required == set(map(Requirement, cfg['requirements'].split()))
    scripts = [f'{e.name}={e.value}' for e in dist.entry_points.select(group='console_scripts')]
    assert scripts == cfg['console_scripts'].split()
    toml = tomllib.loads((root/'pyproject.toml').read_text())
    assert 'project' not in toml and set(toml) == {'build-system', 'tool'}
    assert python('import gear_fastai; print(gear_fastai.__version__)') == cfg['version']


def test_named_packages_are_required():
    names = {Requirement(r).name for r in cfg['requirements'].split()}
    assert {'fastai', 'torch', 'torchvision', 'timm', 'nbdev', 'matplotlib', 'pillow', 'ipywidgets'} <= names


def test_licenses_are_listed():
    "One row of .github/LICENSES.md for each required package"
    lines = [s for s in (root/'.github/LICENSES.md').read_text().splitlines() if s.startswith('|')]
    rows = dict([cell.strip() for cell in s.split('|')[1:3]] for s in lines[2:])
    names = {Requirement(r).name.lower() for r in f"{cfg['requirements']} {cfg['app_requirements']}".split()}
    assert {name.lower() for name in rows} == names and 'UNKNOWN' not in rows.values(), 'run `make licenses`'


def test_importing_the_package_is_light():
    heavy = '{"torch", "fastai", "timm", "onnxruntime", "numpy"}'
    assert python(f'import sys, gear_fastai; dir(gear_fastai); print(sorted({heavy} & set(sys.modules)))') == '[]'
    code = 'from gear_fastai import predict; import gear_fastai.inference; print(predict.__name__, callable(predict))'
    assert python(code) == 'predict True'


def test_everything_in_one_import():
    names = ('open_photo dataloaders photo_learner transfer_learner train_model load_network predict evaluate '
             'draw_sample Learner')
    assert python(f'from gear_fastai.all import *; print([n for n in {names.split()} if n not in globals()])') == '[]'


def test_readme_is_rendered_from_index():
    from readme import IMAGES, rendered
    text, images = rendered()
    assert (root/'README.md').read_text(encoding='utf-8') == text, 'run `make readme`'
    for name, raw in images.items(): assert (root/IMAGES/name).read_bytes() == raw, 'run `make readme`'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    to = tmp_path_factory.mktemp('wheel')
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', to, root], check=True)
    return next(to.glob('gear_fastai-*.whl'))


def test_wheel_works_elsewhere(wheel, tmp_path):
    "Installed elsewhere and run from another folder, the command draws photos and the bundled model classifies them"
    install = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', tmp_path/'site', wheel]
    subprocess.run(install, check=True)
    env = dict(PYTHONPATH=str(tmp_path/'site'), PATH='/usr/bin:/bin', HOME=str(tmp_path))
    assert str(tmp_path/'site') in python('import gear_fastai; print(gear_fastai.__file__)', cwd=tmp_path, env=env)
    python('from gear_fastai.cli import main; main(["data", "sample", "drawn", "-n", "3"])', cwd=tmp_path, env=env)
    assert len(list((tmp_path/'drawn').rglob('*.*'))) == 36
    code = ('from pathlib import Path; from gear_fastai import GearClassifier, predict; '
            'print(GearClassifier().folder, *(p.top1 for p in predict(sorted(Path("drawn").rglob("*.*")))))')
    folder, *labels = python(code, cwd=tmp_path, env=env).split()
    assert Path(folder).is_relative_to(tmp_path/'site') and len(labels) == 36 and 'None' not in labels


def test_models_survive_git_with_windows_line_endings(tmp_path):
    "git may change the line endings of a model's text files; the model still opens"
    settings = [arg for s in ('core.autocrlf=true', 'user.name=a', 'user.email=a@example.com') for arg in ('-c', s)]
    def git(*args): subprocess.run(['git', *settings, *args], cwd=tmp_path, check=True, capture_output=True)
    shutil.copytree(root/'models/gear', tmp_path/'gear')
    git('init')
    git('add', 'gear')
    git('commit', '-m', 'a model')
    shutil.rmtree(tmp_path/'gear')
    git('checkout', 'gear')
    for name in ('gear.json', 'config.json'): assert b'\r\n' in (tmp_path/'gear'/name).read_bytes()
    code = ('from gear_fastai import GearClassifier; from gear_fastai.drawing import draw_photo; '
            'print(GearClassifier("gear").predict(draw_photo("boots")).top1)')
    assert python(code, cwd=tmp_path)
    assert pd.read_csv(tmp_path/'gear/splits.csv').equals(pd.read_csv(root/'models/gear/splits.csv'))


def test_new_models_are_binary_for_git(tmp_path):
    "git treats a file as binary if there is a zero byte near its start"
    from gear_fastai.transfer import write_onnx
    import torch
    from gear_fastai.export import _rewrite
    write_onnx(torch.nn.Flatten(), torch.zeros(1, 3, 4, 4), str(tmp_path/'model.onnx'))
    _rewrite(tmp_path/'model.onnx', half=False)
    assert b'\0' in (tmp_path/'model.onnx').read_bytes()[:100]


NOTICE = 'NOTE: the browser tests were skipped (NO CHROMIUM FOUND: the uploader is not tested in a browser)'


@pytest.fixture
def small_project(tmp_path):
    "The Makefile with one test, a stand-in for `nbdev-test`, and nothing to install"
    (tmp_path/'tests').mkdir()
    (tmp_path/'.venv/bin').mkdir(parents=True)
    (tmp_path/'tests/test_other.py').write_text('def test_nothing(): pass\n')
    for name in ('Makefile', 'tests/conftest.py', 'tests/test_browser.py'): shutil.copy(root/name, tmp_path/name)
    empty = 'settings.ini setup.py pyproject.toml constraints.txt tests/unchanged.py .venv/installed .venv/installed-dev'
    for name in empty.split(): (tmp_path/name).touch()
    for name, script in {'python': f'exec {sys.executable} "$@"', 'nbdev-test': 'sleep 2; echo Success.'}.items():
        (tmp_path/'.venv/bin'/name).write_text(f'#!/bin/sh\n{script}\n')
        (tmp_path/'.venv/bin'/name).chmod(0o755)
    return tmp_path


@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
@pytest.mark.parametrize('found', [False, True])
def test_make_test_ends_with_a_notice_if_no_browser_was_found(small_project, found):
    if found: shutil.copy(small_project/'tests/test_other.py', small_project/'tests/test_browser.py')
    tools = small_project/'tools'                               # a PATH without browsers
    tools.mkdir()
    for name in ('make', 'sh', 'env', 'sleep', 'rm', 'cat', 'nproc'): (tools/name).symlink_to(shutil.which(name))
    env = {k: v for k, v in os.environ.items() if k not in ('GEAR_NEED_BROWSER', 'MAKEFLAGS', 'MAKELEVEL')}
    env['PATH'] = str(tools)
    done = subprocess.run(['make', 'test'], cwd=small_project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout.splitlines()[-1] == NOTICE) == (not found)
    assert (NOTICE in done.stdout) == (not found) and 'Success.' in done.stdout
