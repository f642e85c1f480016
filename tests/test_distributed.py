"Runs of several processes, over gloo, beside a run of one; and of two hosts, where network namespaces can be made."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip('accelerate')
from gear_fastai.model_folder import read_gear, read_model

TRAIN = ['-m', 'gear_fastai.cli', 'train']
RECIPE = ['--epochs', '3', '--size', '32', '--bs', '16']
TORCHRUN = [sys.executable, '-m', 'torch.distributed.run']

# Training without augmentation, with exact arithmetic, of a network whose normalisation stands still: then a run of many is a run of one
EXACT = '''
import os, sys
import gear_fastai.export as model, gear_fastai.learner as training
from fastai.vision.all import *
training.supports_bf16 = lambda: False
model.Augment = lambda **kwargs: Transform(noop)
class Note(Callback):
    "What each rank's weights sum up to"
    def after_epoch(self):
        with open(f'{sys.argv[2]}-{rank_distrib()}', 'a') as f: f.write(f'{sum(p.double().sum().item() for p in self.learn.model.parameters())!r}\\n')
model.train_model(sys.argv[1], 'test_resnet', sys.argv[2], pretrained=False, epochs=3, size=32, bs=24, progress=False, cbs=[Note()])
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
    "What a command prints, on both streams"
    done = subprocess.run(list(map(str, args)), cwd=home, env=env(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
    assert done.returncode == code, done.stdout
    return done.stdout


def torchrun(home, ranks, *args, **kw): return run(home, *TORCHRUN, '--standalone', '--nproc-per-node', ranks, *args, **kw)
def history(out): return pd.read_csv(out/'history.csv').drop(columns='seconds')
def files(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))


def test_many_are_one(home):
    "With chance left out, two and four processes end with the weights and the history of one; all ranks have the same, and one of them writes"
    run(home, sys.executable, 'exact.py', 'gear', 'one/mine')
    sums = (home/'one/mine-0').read_text().split()
    for n in (2, 4):
        torchrun(home, n, 'exact.py', 'gear', f'{n}/mine')
        pd.testing.assert_frame_equal(history(home/f'{n}/mine'), history(home/'one/mine'), rtol=1e-3, check_dtype=False)
        ranks = [(home/f'{n}/mine-{r}').read_text() for r in range(n)]
        assert len(set(ranks)) == 1, 'ranks differ'
        assert [float(s) for s in ranks[0].split()] == pytest.approx([float(s) for s in sums], rel=1e-4)
        assert [f for f in files(home/f'{n}') if not f.startswith('mine-')] == [f for f in files(home/'one') if not f.startswith('mine-')]


def test_accelerate_launches(home):
    "`accelerate launch` for two processes; the command tells once what it did"
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no']
    told = run(home, *launch, *TRAIN, 'gear', '--arch', 'gear_cnn_small', *RECIPE, '--out', 'acc/mine')
    assert told.count('saved acc/mine') == told.count('epoch 0 ') == 1
    assert len(history(home/'acc/mine')) == 3 and read_model(home/'acc/mine', 'model.onnx') and os.listdir(home/'acc') == ['mine']


def test_mistakes_are_told_once(home):
    told = torchrun(home, 2, *TRAIN, 'gone', code=1)
    assert told.count('Error: gone: ') == 1 and '.py", line' not in told.split('Error: gone')[0]


def killed(home, launchers, victim, out):
    "Start a run, kill a process of it after its second epoch; what the launchers say"
    started = [subprocess.Popen(list(map(str, l)), cwd=home, env=env(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for l in launchers]
    while not out.with_name(f'{out.name}.checkpoint').exists() and all(p.poll() is None for p in started): time.sleep(.05)
    os.kill(victim(started), signal.SIGKILL)
    return [p.communicate()[0] for p in started]


def child(pid, rank):
    "The process of a launcher that is rank `rank` of its run"
    for p in Path('/proc').glob('[0-9]*'):
        try:
            if int((p/'stat').read_text().rsplit(')', 1)[1].split()[1]) == pid and f'RANK={rank}'.encode() in (p/'environ').read_bytes().split(b'\0'): return int(p.name)
        except (OSError, ValueError): pass


@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='needs /proc')
def test_a_rank_dies(home):
    "The launcher names it; the run goes on with --resume to what it would have come to"
    args = [*TRAIN, 'gear', '--arch', 'gear_cnn_small', '--epochs', '8', *RECIPE[2:]]
    launch = [*TORCHRUN, '--standalone', '--nproc-per-node', '2', *args, '--out', 'dies/mine']
    told, = killed(home, [launch], lambda started: child(started[0].pid, 1), home/'dies/mine')
    assert 'Error: rank 0 of 2: ' in told and 'the same command with --resume goes on' in told
    assert 'rank      : 1 ' in told.split('Root Cause')[1] and 'Signal 9' in told
    run(home, *launch, '--resume')
    torchrun(home, 2, *args, '--out', 'lives/mine')
    pd.testing.assert_frame_equal(history(home/'dies/mine'), history(home/'lives/mine'), check_exact=True)
    assert read_gear(home/'dies/mine')['files'] == read_gear(home/'lives/mine')['files'] and os.listdir(home/'dies') == ['mine']


@pytest.fixture
def hosts():
    "Two network namespaces, joined by a wire"
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


def test_two_hosts(home, hosts):
    "Each host has its own network, and only the first writes; when a process of the second is killed, the first says which"
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
