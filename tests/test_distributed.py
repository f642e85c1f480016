"Runs of several processes, over gloo, compared with a run of one; and of two hosts, where network namespaces can be made."
import os, signal, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from gear_fastai.model_folder import read_gear, read_model

needs_accelerate = pytest.mark.skipif(find_spec('accelerate') is None, reason='needs accelerate')
TRAIN = ['-m', 'gear_fastai.cli', 'train']
RECIPE = ['--epochs', '3', '--size', '32', '--bs', '16']
TORCHRUN = [sys.executable, '-m', 'torch.distributed.run']

# Training without augmentation, in float32, with fixed normalization: a run of several processes then equals a run of one
EXACT = '''
import os, sys
import gear_fastai.learner as learner, gear_fastai.recipes as recipes, gear_fastai.training as training
from fastai.vision.all import *
learner.supports_bf16 = lambda: False
training.Augment = lambda **kwargs: Transform(noop)
class Note(Callback):
    "The sum of each rank's weights"
    def after_epoch(self):
        with open(f'{sys.argv[2]}-{rank_distrib()}', 'a') as f: f.write(f'{sum(p.double().sum().item() for p in self.learn.model.parameters())!r}\\n')
recipes.train_model(sys.argv[1], 'test_resnet', sys.argv[2], pretrained=False, epochs=3, size=32, bs=24, progress=False, cbs=[Note()])
sys.stdout.flush(); os._exit(0)
'''


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('many')
    for args in (['sample', 'gear', '-n', '8'], ['split', 'gear']): subprocess.run([sys.executable, '-m', 'gear_fastai.cli', 'data', *args], cwd=home, check=True)
    (home/'exact.py').write_text(EXACT)
    for n in ('one', '2', '4'): (home/n).mkdir()
    return home


def env(home): return os.environ | dict(GEAR_FASTAI_CACHE=str(home/'cache'), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')


def run(home, *args, code=0, **kw):
    "Run a command and return its output"
    done = subprocess.run(list(map(str, args)), cwd=home, env=env(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
    assert done.returncode == code, done.stdout
    return done.stdout


def torchrun(home, ranks, *args, **kw): return run(home, *TORCHRUN, '--standalone', '--nproc-per-node', ranks, *args, **kw)
def history(out): return pd.read_csv(out/'history.csv').drop(columns='seconds')
def files(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))


WITHOUT_ACCELERATE = """
import sys
sys.modules['accelerate'] = None
import gear_fastai.distributed as distributed, gear_fastai.recipes
assert distributed.from_rank0(lambda: 1) == distributed.on_all_ranks(lambda: 1)() == 1
try:
    with distributed.join_ranks(): pass
except ValueError as e: print(e)
"""


def test_accelerate_is_optional():
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', WITHOUT_ACCELERATE], check=True, capture_output=True, text=True).stdout
    assert out == "a run on several processes needs accelerate: pip install 'gear_fastai[many]'\n"
    code = 'import sys, gear_fastai.distributed; assert "accelerate" not in sys.modules'
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


@needs_accelerate
def test_many_are_one(home):
    "Without randomness, two and four processes end with the weights and history of one; all ranks agree, and one writes"
    run(home, sys.executable, 'exact.py', 'gear', 'one/mine')
    sums = (home/'one/mine-0').read_text().split()
    for n in (2, 4):
        torchrun(home, n, 'exact.py', 'gear', f'{n}/mine')
        pd.testing.assert_frame_equal(history(home/f'{n}/mine'), history(home/'one/mine'), rtol=1e-3, check_dtype=False)
        ranks = [(home/f'{n}/mine-{r}').read_text() for r in range(n)]
        assert len(set(ranks)) == 1, 'ranks differ'
        assert [float(s) for s in ranks[0].split()] == pytest.approx([float(s) for s in sums], rel=1e-4)
        assert [f for f in files(home/f'{n}') if not f.startswith('mine-')] == [f for f in files(home/'one') if not f.startswith('mine-')]


@needs_accelerate
def test_accelerate_launches(home):
    "`accelerate launch` with two processes; the command reports once"
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no']
    told = run(home, *launch, *TRAIN, 'gear', '--arch', 'gear_cnn_small', *RECIPE, '--out', 'acc/mine')
    assert told.count('saved acc/mine') == told.count('epoch 0 ') == 1
    assert len(history(home/'acc/mine')) == 3 and read_model(home/'acc/mine', 'model.onnx') and os.listdir(home/'acc') == ['mine']


@needs_accelerate
def test_mistakes_are_reported_once(home):
    told = torchrun(home, 2, *TRAIN, 'gone', code=1)
    assert told.count('Error: gone: ') == 1 and '.py", line' not in told.split('Error: gone')[0]


def killed(home, launchers, victim, out):
    "Start a run, kill one of its processes after the second epoch, and return the launchers' output"
    started = [subprocess.Popen(list(map(str, l)), cwd=home, env=env(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for l in launchers]
    while not out.with_name(f'{out.name}.checkpoint').exists() and all(p.poll() is None for p in started): time.sleep(.05)
    os.kill(victim(started), signal.SIGKILL)
    return [p.communicate()[0] for p in started]


def child(pid, rank):
    "The process of a launcher that has rank `rank`"
    for p in Path('/proc').glob('[0-9]*'):
        try:
            if int((p/'stat').read_text().rsplit(')', 1)[1].split()[1]) == pid and f'RANK={rank}'.encode() in (p/'environ').read_bytes().split(b'\0'): return int(p.name)
        except (OSError, ValueError): pass


@needs_accelerate
@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='needs /proc')
def test_a_rank_dies(home):
    "The launcher names it; with --resume the run ends as it would have without the failure"
    args = [*TRAIN, 'gear', '--arch', 'gear_cnn_small', '--epochs', '8', *RECIPE[2:]]
    launch = [*TORCHRUN, '--standalone', '--nproc-per-node', '2', *args, '--out', 'dies/mine']
    told, = killed(home, [launch], lambda started: child(started[0].pid, 1), home/'dies/mine')
    assert 'Error: rank 0 of 2: ' in told and 'run the same command with --resume' in told
    assert 'rank      : 1 ' in told.split('Root Cause')[1] and 'Signal 9' in told
    run(home, *launch, '--resume')
    torchrun(home, 2, *args, '--out', 'lives/mine')
    pd.testing.assert_frame_equal(history(home/'dies/mine'), history(home/'lives/mine'), check_exact=True)
    assert read_gear(home/'dies/mine')['files'] == read_gear(home/'lives/mine')['files'] and os.listdir(home/'dies') == ['mine']


@pytest.fixture
def hosts():
    "Two connected network namespaces"
    ip = lambda *a: subprocess.run(['ip', *a], check=True, capture_output=True)
    names = [f'gear{os.getpid()}{k}' for k in 'ab']
    try:
        for n in names: ip('netns', 'add', n)
        ip('link', 'add', 'wire', 'netns', names[0], 'type', 'veth', 'peer', 'name', 'wire', 'netns', names[1])
        for k, n in enumerate(names):
            ip('-n', n, 'addr', 'add', f'10.77.0.{k+1}/24', 'dev', 'wire')
            for dev in ('wire', 'lo'): ip('-n', n, 'link', 'set', dev, 'up')
        yield names
    except (OSError, subprocess.CalledProcessError): pytest.skip('network namespaces can\'t be made here')
    finally:
        for n in names: subprocess.run(['ip', 'netns', 'del', n], capture_output=True)


@needs_accelerate
def test_two_hosts(home, hosts):
    "Each host has its own network, and only the first writes; when a process of the second is killed, the first names it"
    def on(k, host, *args):
        return ['ip', 'netns', 'exec', host, 'env', 'GLOO_SOCKET_IFNAME=wire', *TORCHRUN, '--nnodes', '2', '--nproc-per-node', '1', '--node-rank', k,
                '--master-addr', '10.77.0.1', '--master-port', '29400', *args]
    args = ['gear', '--arch', 'gear_cnn_small', '--epochs', '8', *RECIPE[2:], '--out', 'hosts/mine']
    launch = [on(k, host, *TRAIN, *args) for k, host in enumerate(hosts)]
    first, second = killed(home, launch, lambda started: child(started[1].pid, 1), home/'hosts/mine')
    assert 'Error: rank 0 of 2: no answer from rank 1 on ' in first and 'Signal 9' in second
    started = [subprocess.Popen([*map(str, l), '--resume'], cwd=home, env=env(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for l in launch]
    told = [p.communicate()[0] for p in started]
    assert [p.returncode for p in started] == [0, 0] and 'saved hosts/mine' in told[0] and 'saved' not in told[1], told
    assert len(history(home/'hosts/mine')) == 8 and os.listdir(home/'hosts') == ['mine']
