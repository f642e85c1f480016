"The commands write nothing outside of the folders that they are given and their cache, and open no connection to another machine."
import os, re, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest

STRACE = shutil.which('strace')
if not STRACE:
    why = 'NO STRACE FOUND: connections of the commands are not tested'
    if os.environ.get('GEAR_NEED_BROWSER'): pytest.fail(why, pytrace=False)
    pytest.skip(why, allow_module_level=True)

SWITCHES = ('ORT_DISABLE_TELEMETRY', 'RAY_USAGE_STATS_ENABLED', 'HF_HUB_DISABLE_TELEMETRY', 'DO_NOT_TRACK')
CACHES = ('.cache/gear_fastai/', '.cache/matplotlib/', '.cache/fontconfig/')
RUN = '''
import sys
from gear_fastai.cli import main
for command in sys.argv[1:]: main(command.split(), standalone_mode=False)
'''


@pytest.fixture
def home(tmp_path):
    (tmp_path/'home').mkdir()
    (tmp_path/'work').mkdir()
    return tmp_path/'home'


def environment(home):
    "The usual environment with an empty home folder, and without our own switches"
    kept = {k: v for k, v in os.environ.items() if k not in (*SWITCHES, 'GEAR_FASTAI_CACHE') and not k.startswith('XDG_')}
    return kept | dict(HOME=str(home), OMP_NUM_THREADS='1')


def connections(log, allowed=()):
    "The addresses beyond the loopback that were connected to, with the system call"
    calls = [l for l in log.read_text(errors='replace').splitlines() if 'connect(' in l and 'inet' in l]
    named = [(re.search(r'inet_addr\("([^"]+)"|inet_pton\(AF_INET6, "([^"]+)"', l), l) for l in calls]
    addresses = [((m[1] or m[2]).removeprefix('::ffff:'), l) for m, l in named]
    return [(a, l) for a, l in addresses if not (a.startswith('127.') or a == '::1' or a in allowed)]


def own_address():
    "The address that this machine has for others, asked as Ray asks it: with a UDP socket that sends nothing"
    with socket.socket(type=socket.SOCK_DGRAM) as s:
        s.connect(('8.8.8.8', 53))
        return s.getsockname()[0]


def strangers(home):
    "Files in the home folder that are in none of our caches"
    files = [p.relative_to(home).as_posix() for p in home.rglob('*') if not p.is_dir()]
    return [f for f in files if not f.startswith(CACHES)]


def traced(log, *command, **kw):
    return subprocess.Popen([STRACE, '-f', '-e', 'trace=connect', '-o', log, *map(str, command)], start_new_session=True, **kw)


def test_commands_stay_at_home(home, tmp_path):
    commands = ['data sample photos -n 4', 'data audit photos', 'data split photos', 'train photos --arch test_efficientnet --no-pretrained --epochs 1 --size 32 --out models/a',
                'evaluate models/a photos --html report.html', 'predict photos/boots', 'predict photos/boots --model models/a --csv']
    p = traced(tmp_path/'log', sys.executable, '-c', RUN, *commands, cwd=tmp_path/'work', env=environment(home), stdout=subprocess.DEVNULL)
    assert p.wait() == 0
    assert connections(tmp_path/'log') == [] and strangers(home) == []


def test_ray_stays_at_home(home, tmp_path):
    pytest.importorskip('ray')
    commands = ['data sample photos -n 1', 'predict photos --engine ray --out scores --workers 1']
    p = traced(tmp_path/'log', sys.executable, '-c', RUN, *commands, cwd=tmp_path/'work', env=environment(home), stdout=subprocess.DEVNULL)
    assert p.wait() == 0
    assert connections(tmp_path/'log', ('8.8.8.8', own_address())) == [] and strangers(home) == []


def test_app_stays_at_home(home, tmp_path):
    pytest.importorskip('voila')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    p = traced(tmp_path/'log', sys.executable, '-m', 'gear_fastai.cli', 'app', '--port', port, cwd=tmp_path/'work', env=environment(home), stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline().startswith('ready')
        assert b'gear' in urllib.request.urlopen(f'http://127.0.0.1:{port}', timeout=60).read()
    finally:
        os.killpg(p.pid, 15)
        p.wait()
    assert connections(tmp_path/'log') == [] and strangers(home) == []


def test_reporting_can_be_switched_on(home):
    code = f'import gear_fastai, os; print(*(os.environ[k] for k in {SWITCHES}))'
    def switches(**env): return subprocess.run([sys.executable, '-c', code], env=environment(home) | env, capture_output=True, text=True, check=True).stdout.split()
    assert switches() == ['1', '0', '1', '1']
    assert switches(ORT_DISABLE_TELEMETRY='0', RAY_USAGE_STATS_ENABLED='1') == ['0', '1', '1', '1']
