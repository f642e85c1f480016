"gear_fastai_predict: in an empty environment made by the steps of serving/Dockerfile, without torch."
import json, re, shlex, shutil, socket, subprocess, sys, time, urllib.error, urllib.request, warnings
from configparser import ConfigParser
from pathlib import Path

import pytest

from gear_fastai import predict
from gear_fastai.drawing import draw_photo

root = Path(__file__).parent.parent
steps = (root/'serving/Dockerfile').read_text()
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
MODULES = cfg['predict_modules'].split()
HEAVY = 'torch torchvision fastai timm pandas scipy sklearn matplotlib onnx huggingface_hub IPython'.split()
ONLY = """
import sys
class Blocked:
    def find_spec(name, path=None, target=None):
        top, _, module = name.partition('.')
        if top in {heavy} or top == 'gear_fastai' and module and module not in {modules}: raise ImportError(name)
sys.meta_path.insert(0, Blocked)
from importlib import import_module
for module in {modules}: import_module(f'gear_fastai.{{module}}')
from gear_fastai import predict
print(predict(sys.argv[1]).confidence)
"""


def close(p, q): return p['label'] == q.label and abs(p['confidence'] - q.confidence) < 1e-4


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    file = tmp_path_factory.mktemp('photo')/'gloves.png'
    draw_photo('gloves').save(file)
    return file


def test_prediction_needs_only_its_modules(photo):
    "With all other modules and the heavy packages blocked, the listed modules import and predict"
    code = ONLY.format(heavy=HEAVY, modules=MODULES)
    done = subprocess.run([sys.executable, '-c', code, photo], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert abs(float(done.stdout) - predict(photo).confidence) < 1e-4


def copy_sources(to):
    "The COPY steps"
    for line in re.findall('^COPY (?!--)(.+)', steps, re.M):
        *names, _ = line.split()
        for name in names:
            dest = to/name
            dest.parent.mkdir(parents=True, exist_ok=True)
            if (root/name).is_dir(): shutil.copytree(root/name, dest, ignore=shutil.ignore_patterns('build', '*.egg-info', '__pycache__'))
            else: shutil.copy(root/name, dest)


def skip_without_index(to):
    "Skip with a notice if even a small package cannot be installed"
    command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--retries', '0', '--target', to, 'click']
    if not subprocess.run(command, capture_output=True).returncode: return
    reason = 'NO PACKAGE INDEX FOUND: gear_fastai_predict is not tested in an empty environment'
    warnings.warn(reason)
    pytest.skip(reason)


@pytest.fixture(scope='module')
def light(tmp_path_factory):
    "A function that runs a command in an environment with gear_fastai_predict and what it requires, no more"
    folder = tmp_path_factory.mktemp('light')
    skip_without_index(folder/'probe')
    copy_sources(folder/'src')
    install = shlex.split(re.search('^RUN pip (.+)', steps, re.M)[1].replace('/site', str(folder/'site')))
    done = subprocess.run([sys.executable, '-m', 'pip', *install], cwd=folder/'src', capture_output=True, text=True)
    assert not done.returncode, done.stderr
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder/'venv'], check=True)
    path = f"{folder/'site'}:{root/'serving'}"
    env = dict(PYTHONPATH=path, PYTHONDONTWRITEBYTECODE='1', HOME=str(folder), PATH='/usr/bin:/bin')
    def start(*args, **kw):
        command = [folder/'venv/bin/python', *args]
        return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)
    start.site = folder/'site'
    return start


def run(light, *args):
    p = light(*args)
    out, err = p.communicate(timeout=60)
    return p.returncode, out.strip(), err.strip()


def test_light_installation_predicts_the_same(light, photo):
    code = 'import sys, json; from gear_fastai import predict; print(json.dumps(predict(sys.argv[1]).to_dict()))'
    status, out, err = run(light, '-c', code, photo)
    assert not status and close(json.loads(out), predict(photo)), err
    status, out, err = run(light, light.site/'bin/gear-fastai', 'predict', photo, '--json')
    assert not status and close(json.loads(out), predict(photo)), err
    assert run(light, light.site/'bin/gear-fastai', '--version')[1].endswith(cfg['version'])


def test_light_installation_is_small(light):
    assert not [name for name in HEAVY if (light.site/name).exists()]
    assert sorted(f.stem for f in (light.site/'gear_fastai').glob('*.py')) == sorted(['__init__', *MODULES])
    assert sum(f.stat().st_size for f in light.site.rglob('*') if f.is_file()) < 260e6


NEEDS = 'needs the complete package: pip install gear_fastai'

@pytest.mark.parametrize('code', ['from gear_fastai import GearUploader', 'from gear_fastai.all import *',
                                  'from gear_fastai import GearClassifier; from PIL import Image; GearClassifier().adapt([Image.new("RGB", (9, 9))], ["a"])'])
def test_missing_modules_are_named(light, code):
    assert re.fullmatch(rf'ModuleNotFoundError: gear_fastai\.\w+ {NEEDS}', run(light, '-c', code)[2].splitlines()[-1])


@pytest.mark.parametrize('command', ['train photos', 'demo', 'data split photos', 'adapt a b --out c', 'app', 'evaluate -h'])
def test_other_commands_name_the_complete_package(light, command):
    status, _, err = run(light, light.site/'bin/gear-fastai', *command.split())
    assert status == 1 and re.fullmatch(rf'Error: gear_fastai\.\w+ {NEEDS}', err)


@pytest.fixture(scope='module')
def service(light):
    "Address of the service, started as in the Dockerfile"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    command = json.loads(steps.rsplit('\nCMD ', 1)[1])[1:]
    changed = {'0.0.0.0': '127.0.0.1', '8000': str(port)}
    p = light(*[changed.get(arg, arg) for arg in command])
    url = f'http://127.0.0.1:{port}'
    for _ in range(300):
        try: urllib.request.urlopen(f'{url}/health').close()
        except OSError: time.sleep(.1)
        else: break
    yield url
    p.terminate()
    p.communicate()


def post(url, body):
    "Status and content of the response"
    try: response = urllib.request.urlopen(urllib.request.Request(f'{url}/predict', data=body), timeout=60)
    except urllib.error.HTTPError as e: response = e
    with response: return response.status, json.load(response)


def test_service_classifies_a_photo(service, photo):
    status, p = post(service, photo.read_bytes())
    assert status == 200 and close(p, predict(photo)) and 'probabilities' in p and p['nearest']
    with urllib.request.urlopen(f'{service}/health') as response: health = json.load(response)
    assert health['status'] == 'ok' and list(p['probabilities']) == health['labels']


@pytest.mark.parametrize('body, status, text', [(b'no photo', 422, 'not an image'), (b'', 422, 'not an image'),
                                                (bytes(21_000_000), 413, 'larger than 20 MB')])
def test_service_refuses_what_is_no_photo(service, body, status, text):
    got, content = post(service, body)
    assert got == status and text in content['error']


SURROGATE = """
import asyncio, json, app
from types import SimpleNamespace
from gear_fastai.inference import Nearest, Prediction

class Request:
    async def stream(self): yield b'photo'

found = Prediction(label='boots', nearest=Nearest('boots/b\\udcff.jpg', 'boots', 1.))
app.clf = SimpleNamespace(predict=lambda photo: found)
response = asyncio.run(app.predict(Request()))
print(ascii(json.loads(response.body)['nearest']['path']))
"""

def test_service_sends_names_that_are_not_utf8(light):
    assert run(light, '-c', SURROGATE)[1] == ascii('boots/b\udcff.jpg')


def test_service_does_not_run_as_root():
    assert re.search(r'^USER (?!root)', steps, re.M)


def test_constraints_pin_what_is_required():
    "One release for each requirement, and no path or address"
    pins = (root/'constraints.txt').read_text().splitlines()[1:]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+', line) for line in pins)
    names = {re.sub('[_.-]+', '-', line.split('==')[0]).lower() for line in pins}
    required = ' '.join(cfg[key] for key in cfg if key.endswith('requirements')).split()
    assert {re.match(r'[\w-]+', r)[0].replace('_', '-').lower() for r in required} <= names
