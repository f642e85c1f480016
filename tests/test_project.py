"What a notebook can't test: the package as a package."
import shutil, subprocess, sys, tomllib
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
    "What `code` prints in a process of its own"
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True, **kw).stdout.strip()


def test_metadata_is_written_once():
    "The installed package says what settings.ini says, and pyproject.toml says nothing of it"
    dist = distribution('gear_fastai')
    assert dist.version == cfg['version'] and dist.metadata['Summary'] == cfg['description']
    required = {r for r in map(Requirement, dist.requires) if not r.marker}
    assert required == set(map(Requirement, cfg['requirements'].split()))
    assert [f'{e.name}={e.value}' for e in dist.entry_points.select(group='console_scripts')] == cfg['console_scripts'].split()
    toml = tomllib.loads((root/'pyproject.toml').read_text())
    assert 'project' not in toml and set(toml) == {'build-system', 'tool'}
    assert python('import gear_fastai; print(gear_fastai.__version__)') == cfg['version']


def test_named_packages_are_required():
    names = {Requirement(r).name for r in cfg['requirements'].split()}
    assert {'fastai', 'torch', 'torchvision', 'timm', 'nbdev', 'matplotlib', 'pillow', 'ipywidgets'} <= names


def test_licences_are_listed():
    "One row of .github/LICENCES.md for each package that users get"
    rows = {r.split('|')[1].strip().lower(): r.split('|')[2].strip() for r in (root/'.github/LICENCES.md').read_text().splitlines() if r.startswith('|')}
    names = {Requirement(r).name.lower() for r in f"{cfg['requirements']} {cfg['app_requirements']}".split()}
    assert set(rows) - {'name'} - {r for r in rows if set(r) == {'-'}} == names and 'UNKNOWN' not in rows.values(), 'run `make licences`'


def test_importing_the_package_is_light():
    code = 'import sys, gear_fastai; dir(gear_fastai); print(sorted({"torch", "fastai", "timm", "onnxruntime", "numpy"} & set(sys.modules)))'
    assert python(code) == '[]'
    assert python('from gear_fastai import predict; import gear_fastai.inference; print(predict.__name__, callable(predict))') == 'predict True'


def test_everything_in_one_import():
    names = 'open_photo dataloaders photo_learner transfer_learner train_model load_network predict evaluate draw_sample Learner'
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
    "Installed from the wheel into another place and run from another folder, the command draws photos and the model in the box classifies them"
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', tmp_path/'site', wheel], check=True)
    env = dict(PYTHONPATH=str(tmp_path/'site'), PATH='/usr/bin:/bin', HOME=str(tmp_path))
    assert str(tmp_path/'site') in python('import gear_fastai; print(gear_fastai.__file__)', cwd=tmp_path, env=env)
    python('from gear_fastai.cli import main; main(["data", "sample", "drawn", "-n", "3"])', cwd=tmp_path, env=env)
    assert len(list((tmp_path/'drawn').rglob('*.*'))) == 36
    code = 'from gear_fastai import GearClassifier, predict; print(GearClassifier().folder, *(p.top1 for p in predict(sorted(Path("drawn").rglob("*.*")))))'
    folder, *labels = python('from pathlib import Path; ' + code, cwd=tmp_path, env=env).split()
    assert Path(folder).is_relative_to(tmp_path/'site') and len(labels) == 36 and 'None' not in labels


def test_models_survive_git_with_windows_line_endings(tmp_path):
    "Text files of a model come out of a checkout with other line endings; the model is the same"
    def git(*args): subprocess.run(['git', '-c', 'core.autocrlf=true', '-c', 'user.name=a', '-c', 'user.email=a@example.com', *args], cwd=tmp_path, check=True, capture_output=True)
    shutil.copytree(root/'models/gear', tmp_path/'gear')
    git('init')
    git('add', 'gear')
    git('commit', '-m', 'a model')
    shutil.rmtree(tmp_path/'gear')
    git('checkout', 'gear')
    assert b'\r\n' in (tmp_path/'gear/gear.json').read_bytes() and b'\r\n' in (tmp_path/'gear/config.json').read_bytes()
    code = 'from gear_fastai import GearClassifier; from gear_fastai.sources import draw_photo; print(GearClassifier("gear").predict(draw_photo("boots")).top1)'
    assert python(code, cwd=tmp_path)
    splits = [pd.read_csv(folder/"splits.csv") for folder in (tmp_path/"gear", root/"models/gear")]
    assert splits[0].equals(splits[1])


def test_new_models_are_binary_for_git(tmp_path):
    "git takes a file for binary if its first 8,000 bytes hold a zero"
    from gear_fastai.transfer import write_onnx
    import torch
    from gear_fastai.export import _halve
    write_onnx(torch.nn.Flatten(), torch.zeros(1, 3, 4, 4), str(tmp_path/'model.onnx'))
    _halve(tmp_path/'model.onnx', lambda w: False)
    assert b'\0' in (tmp_path/'model.onnx').read_bytes()[:100]
