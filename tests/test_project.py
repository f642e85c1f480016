"What a notebook can't test: the package as a package."
import subprocess, sys, tomllib
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

import pytest
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
    names = 'open_photo dataloaders cnn_learner transfer_learner train_model load_model predict evaluate draw_sample Learner'
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
    code = 'from gear_fastai import GearClassifier, predict; print(GearClassifier().folder, *(p.guess for p in predict(sorted(Path("drawn").rglob("*.*")))))'
    folder, *labels = python('from pathlib import Path; ' + code, cwd=tmp_path, env=env).split()
    assert Path(folder).is_relative_to(tmp_path/'site') and len(labels) == 36 and 'None' not in labels
