"Training runs that are killed, at random moments and between any two file changes, lose nothing."
import json, os, random, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import pandas as pd
import pytest

from gear_fastai.model_folder import FILES, read_gear, read_checked, restore_replaced

KILLS = int(os.environ.get('GEAR_KILLS', 3))  # of each kind
RECIPES = dict(scratch='--arch gear_cnn_small --epochs 5', transfer='--arch test_resnet --no-pretrained --epochs 5')
pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='runs are forked')

# One process imports everything, then forks a child for each line it receives, so a run starts at once. A line is JSON:
# arguments; how many file changes to allow before the run kills itself (-1: all); the folder whose changes count (then
# each better model is written at once, not only when that takes little of the time); and a log file.
SERVER = '''
import json, os, signal, sys, warnings
import gear_fastai.training
from gear_fastai.checkpoint import SaveBest
from gear_fastai.cli import command, main
for line in sys.stdin:
    args, allowed, at_once, log = json.loads(line)
    if (pid := os.fork()):
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1); os.dup2(out, 2)
    if at_once: SaveBest.__init__.__defaults__ = (*SaveBest.__init__.__defaults__[:-1], 1e9)
    changes = 'os.rename', 'os.remove', 'os.rmdir', 'os.mkdir'
    def watch(event, about):
        global allowed
        if event not in changes or at_once not in str(about[0]): return
        if not allowed: os.kill(os.getpid(), signal.SIGKILL)
        allowed -= 1
        os.write(3, b'.')
    os.dup2(os.open(log + '.changes', os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 3)
    if at_once: sys.addaudithook(watch)
    sys.argv = ['gear-fastai', *args]
    command()
'''


class Runs:
    "Runs of `gear-fastai train`, each forked from one process"
    def __init__(self, home):
        self.home, self.photos, self.log = home, home/'gear', home/'log'
        self.server = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       env=os.environ | dict(GEAR_FASTAI_CACHE=str(home/'cache'), OMP_NUM_THREADS='1'))
        subprocess.run([sys.executable, '-m', 'gear_fastai.cli', 'data', 'sample', self.photos, '-n', '8'], check=True)
        subprocess.run([sys.executable, '-m', 'gear_fastai.cli', 'data', 'split', self.photos], check=True)

    def start(self, recipe, out, allowed=-1, at_once='', resume=True):
        args = ['train', str(self.photos), *recipe.split(), '--size', '32', '--bs', '16', '--out', str(out), *(['--resume'] if resume else [])]
        self.server.stdin.write(json.dumps([args, allowed, at_once, str(self.log)]) + '\n')
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def end(self): return int(self.server.stdout.readline())

    def run(self, *args, **kwargs):
        self.start(*args, **kwargs)
        return self.end()


def content(out):
    "What a finished run gave: weights, metrics and calibration, and the history but for its seconds"
    about = read_gear(out)
    for f in FILES[1:]: read_checked(out, f, about)
    return about['files'], (about['metrics'], about.get('calibration')), pd.read_csv(out/'history.csv').drop(columns='seconds')


def epochs_done(out):
    "How many epochs the checkpoint holds"
    import torch
    path = out.with_name(f'{out.name}.checkpoint')
    return len(torch.load(path, weights_only=True)['history']) if path.exists() else 0


def check(out, done):
    "After a kill: the model that is there is whole, and no epoch that was done is lost"
    restore_replaced(out)
    if out.exists(): content(out)
    assert (now := epochs_done(out)) >= done, f'{done - now} epochs lost'
    return now


def same(a, b):
    assert a[0] == b[0] and a[1] == b[1], 'another model'
    pd.testing.assert_frame_equal(a[2], b[2], check_exact=True)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp('kills'))
    runs.whole, runs.seconds = {}, {}
    for name, recipe in RECIPES.items():
        out, began = runs.home/'whole'/name, time.perf_counter()
        assert runs.run(recipe, out, resume=False) == 0, runs.log.read_text()
        runs.whole[name], runs.seconds[name] = content(out), time.perf_counter() - began
    yield runs
    runs.server.stdin.close()
    assert runs.server.wait() == 0


def finish(runs, name, out):
    "Go on to the end without a kill: the same result, and nothing else left"
    assert runs.run(RECIPES[name], out) == 0, runs.log.read_text()
    same(content(out), runs.whole[name])
    assert sorted(p.name for p in out.parent.iterdir()) == [out.name], 'leftovers'


@pytest.mark.parametrize('name', RECIPES)
def test_killed_at_random(runs, name):
    "One run after the other is killed at a random moment and resumed"
    rng, kills, complete = random.Random(int(os.environ.get('GEAR_SEED', 1))), 0, 0
    while kills < KILLS:
        out, done, over = runs.home/f'random-{name}-{complete}'/'mine', 0, False
        while not over and kills < KILLS:
            pid = runs.start(RECIPES[name], out)
            time.sleep(rng.uniform(0, runs.seconds[name]))
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: pass
            over = runs.end() == 0
            if not over: kills, done = kills + 1, check(out, done)
        finish(runs, name, out)
        complete += 1
    print(f'{name}: {kills} kills at random moments of {complete} runs, nothing lost')


@pytest.mark.parametrize('name', RECIPES)
def test_killed_between_any_two_changes_of_files(runs, name):
    "A run that writes each better model at once is killed before its first, second, … rename, removal or new folder, and resumed"
    home = runs.home/f'steps-{name}'
    home.mkdir()                                            # else the first run would, and count it
    assert runs.run(RECIPES[name], home/'all'/'mine', at_once=str(home)) == 0
    n = len(Path(f'{runs.log}.changes').read_bytes())
    steps = range(n) if KILLS >= n else sorted(random.Random(1).sample(range(n), KILLS))
    for k in steps:
        out = home/f'{k}'/'mine'
        assert runs.run(RECIPES[name], out, allowed=k, at_once=str(home)) == -signal.SIGKILL
        check(out, 0)
        finish(runs, name, out)
    print(f'{name}: {len(steps)} of {n} steps killed, nothing lost')


def test_killed_while_a_model_is_replaced(runs):
    "A run that replaces a model is killed between any two changes of files: the old model or the new one is there, and a resumed run keeps both"
    home = runs.home/'replaced'
    home.mkdir()
    assert runs.run('--arch gear_cnn_small --epochs 2 --seed 1', home/'old'/'mine', resume=False) == 0
    old = content(home/'old'/'mine')
    def start(name, **kw):
        shutil.copytree(home/'old', home/name)
        return runs.run(RECIPES['scratch'], home/name/'mine', at_once=str(home), resume=False, **kw)
    assert start('all') == 0
    n = len(Path(f'{runs.log}.changes').read_bytes())
    for k in range(n) if KILLS >= n else sorted(random.Random(2).sample(range(n), KILLS)):
        assert start(str(k), allowed=k) == -signal.SIGKILL
        out = home/str(k)/'mine'
        restore_replaced(out)
        now = content(out)[0]
        assert now in (old[0], runs.whole['scratch'][0]), 'neither model'
        begun = now != old[0] or any(out.parent.glob('mine.new*'))
        assert runs.run(RECIPES['scratch'], out, resume=begun) == 0, runs.log.read_text()
        same(content(out), runs.whole['scratch'])
        assert any(content(kept)[0] == old[0] for kept in out.parent.glob('mine.[0-9]')), 'the old model is gone'
        assert all(re.fullmatch(r'mine(\.\d)?', p.name) for p in out.parent.iterdir()), 'leftovers'


def test_killed_as_a_program(tmp_path, runs):
    "The same with the command as a program of its own, killed while it writes its second checkpoint or soon after"
    out = tmp_path/'mine'
    run = [sys.executable, '-m', 'gear_fastai.cli', 'train', runs.photos, *RECIPES['scratch'].split(), '--size', '32', '--bs', '16', '--out', out]
    with subprocess.Popen(run, stdout=subprocess.DEVNULL) as p:
        while p.poll() is None and epochs_done(out) < 2: time.sleep(.01)
        p.kill()
    assert p.returncode == -signal.SIGKILL
    check(out, 2)
    subprocess.run([*run, '--resume'], check=True, stdout=subprocess.DEVNULL)
    same(content(out), runs.whole['scratch'])
