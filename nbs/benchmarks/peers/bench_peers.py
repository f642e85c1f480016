"""Train and time gear_fastai and its peers on the same photos.

    make bench-peers                                                # everything, in environments of their own
    python nbs/benchmarks/peers/bench_peers.py --only fastai        # one contestant; its rows are replaced
    python nbs/benchmarks/peers/bench_peers.py --part sets --short  # small image sets, in a short version

GEAR_DATA, GEAR_OUTDOOR and GEAR_OOD are the folders of photos, GEAR_WEIGHTS is the file of pretrained weights.
"""
import argparse, json, os, shutil, subprocess, sys, threading, time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile

import numpy as np, pandas as pd, psutil

HERE = Path(__file__).parent
LITE0 = 'tf_efficientnet_lite0'


@dataclass(frozen=True)
class Contestant:
    "A library with the settings that its documentation recommends to a newcomer"
    name: str
    library: str  # 'gear_fastai' for ours
    packages: str  # that it is installed from
    script: str
    group: str  # 'pretrained' or 'scratch': contestants of one group start alike
    network: str
    size: int = None  # pixels; default: the recipe's
    epochs: int = None  # default: the recipe's
    documented: str = ''  # epochs in its documentation
    loading: str = ''  # what loading a stranger's model may execute
    env: str = 'peers'  # environment in .venv
    set_epochs: int = None  # on the small image sets; default: `epochs`


PICKLE = 'any code: the model is a pickle'
NOTHING = 'nothing: safetensors, ONNX and JSON'
CONTESTANTS = [
    Contestant('ours, linear probe', 'gear_fastai', 'gear_fastai', 'ours_run.py', 'pretrained', LITE0, epochs=0,
               documented='0', loading=NOTHING),
    Contestant('ours, fine-tuned', 'gear_fastai', 'gear_fastai', 'ours_run.py', 'pretrained', LITE0,
               documented='4', loading=NOTHING),
    Contestant('fastai', 'fastai', 'fastai timm', 'fastai_run.py', 'pretrained', LITE0, 224, 2, '1 to 2', PICKLE),
    Contestant('Transformers', 'transformers', 'transformers accelerate datasets timm torchvision',
               'transformers_run.py', 'pretrained', LITE0, 224, 3, '3',
               'nothing by default: safetensors; the code of the repository with trust_remote_code'),
    Contestant('AutoGluon', 'autogluon.multimodal', 'autogluon.multimodal', 'autogluon_run.py', 'pretrained', LITE0,
               224, 4, 'up to 20', PICKLE, 'peers-autogluon'),
    Contestant('ours, gear_cnn', 'gear_fastai', 'gear_fastai', 'ours_run.py', 'scratch', 'gear_cnn',
               documented='40', loading=NOTHING),
    Contestant('ours, gear_cnn_small', 'gear_fastai', 'gear_fastai', 'ours_run.py', 'scratch', 'gear_cnn_small',
               documented='12', loading=NOTHING),
    Contestant('Ultralytics', 'ultralytics', 'ultralytics', 'ultralytics_run.py', 'scratch', 'yolo26n-cls.yaml',
               64, 100, '100', PICKLE, set_epochs=40),
    Contestant('Keras', 'keras', 'keras tensorflow-cpu', 'keras_run.py', 'scratch', 'three convolutions', 180, 15, '15',
               'nothing by default: lambda layers are refused; any code with safe_mode=False'),
]


@dataclass
class Run:
    "A finished process"
    rows: list  # JSON lines that it printed
    seconds: float  # from its start to its end
    first_s: float  # from its start to its first line
    peak_mb: float  # most memory that it and its children held at once


def memory(process):
    "Bytes that a process and its children hold; on Linux, memory that they share counts once"
    total = 0
    for p in [process, *process.children(recursive=True)]:
        try: used = p.memory_full_info() if psutil.LINUX else p.memory_info()
        except psutil.Error: continue
        total += getattr(used, 'pss', used.rss)
    return total


PERIOD = 1  # seconds between two looks at the memory, which itself takes up to 60 ms


def watch(process, peak, stop):
    "Keep the highest `memory` in `peak[0]`"
    while not stop.wait(PERIOD):
        try: peak[0] = max(peak[0], memory(process))
        except psutil.NoSuchProcess: return


def two_cores():
    "Restrict this process and its children to two processor cores"
    if hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


THREADS = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'TF_NUM_INTRAOP_THREADS', 'TF_NUM_INTEROP_THREADS')
CACHES = ('GEAR_FASTAI_CACHE', 'HF_HOME', 'YOLO_CONFIG_DIR', 'KERAS_HOME')


def environment(home):
    "Variables for a contestant: two threads, and caches of its own below `home`"
    threads = dict.fromkeys(THREADS, '2')
    caches = {name: f'{home}/cache/{name}' for name in CACHES}
    for folder in caches.values(): Path(folder).mkdir(parents=True, exist_ok=True)
    quiet = dict(PYTHONWARNINGS='ignore', TF_CPP_MIN_LOG_LEVEL='3', HF_HUB_OFFLINE='1', CUDA_VISIBLE_DEVICES='')
    return os.environ | threads | caches | quiet | dict(BENCH_START=str(time.time()))


def run_timed(command, home):
    "Run a command; raise `RuntimeError` with its last words if it fails"
    with TemporaryFile('w+') as errors:
        start = time.perf_counter()
        pipes = dict(stdout=subprocess.PIPE, stderr=errors, text=True)
        process = subprocess.Popen(command, env=environment(home), cwd=home, **pipes)
        peak = [0]
        stop = threading.Event()
        watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), peak, stop))
        watcher.start()
        first = process.stdout.readline()
        first_s = time.perf_counter() - start
        rest = process.stdout.read()
        process.wait()
        seconds = time.perf_counter() - start
        stop.set()
        watcher.join()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f'{Path(command[1]).name}: ' + errors.read().strip()[-600:])
    return Run([json.loads(line) for line in (first + rest).splitlines()], seconds, first_s, peak[0]/1e6)


def python_of(contestant):
    "Python of the contestant's environment; this one if it has none"
    python = HERE.parents[2]/'.venv'/contestant.env/'bin/python'
    return str(python) if python.exists() else sys.executable


def script(contestant): return [python_of(contestant), str((HERE/contestant.script).resolve())]


def code_lines(path):
    "Lines of `train` and `load` in a script, without those for this benchmark's curve and weights file"
    lines = Path(HERE/path).read_text(encoding='utf-8').splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith('def train'))
    last = next(i for i, line in enumerate(lines) if line.startswith('if __name__'))
    return sum(bool(line.strip()) and 'curve.' not in line for line in lines[first:last])


def training(contestant, data, out, weights, size=None, epochs=None):
    "Command that trains; `size` and `epochs` replace the contestant's"
    command = script(contestant) + ['train', str(data), str(out), '--model', contestant.network]
    size = size or contestant.size
    epochs = contestant.epochs if epochs is None else epochs
    if size is not None: command += ['--size', str(size)]
    if epochs is not None: command += ['--epochs', str(epochs)]
    if contestant.group == 'pretrained' and weights: command += ['--weights', str(weights)]
    return command


def predicting(contestant, model, photos, home, warm=0):
    "Command that predicts `photos`"
    listing = Path(home, 'photos.txt')
    listing.write_text('\n'.join(map(str, photos)), encoding='utf-8')
    return script(contestant) + ['predict', str(model), str(listing), '--warm', str(warm)]


def predict(contestant, model, photos, home, warm=0):
    "One row per photo, and latency and throughput"
    lines = run_timed(predicting(contestant, model, photos, home, warm), home).rows[1:]
    times = {k: v for line in lines for k, v in line.items() if k in ('warm_s', 'bulk_s')}
    rows = pd.DataFrame([line for line in lines if 'top1' in line])
    return rows, dict(warm_ms=1000*median(times['warm_s'] or [np.nan]), photos_per_s=len(photos)/times['bulk_s'])


def score(rows, truth, end=''):
    "Accuracy, share with a correct label, and calibration error"
    from gear_fastai.calibration import calibration_error
    correct = (rows.top1 == truth).to_numpy()
    labeled = (rows.label == truth).to_numpy()
    return {f'accuracy{end}': correct.mean(), f'label_correct{end}': labeled.mean(),
            f'calibration_error{end}': calibration_error(rows.confidence, correct)}


def score_all(rows, photos):
    "Metrics on the catalogue's test photos, on outdoor photos, and on OOD images"
    metrics = {}
    for kind, end in (('test', ''), ('outdoor', '_outdoor')):
        some = (photos.kind == kind).to_numpy()
        if some.any(): metrics |= score(rows[some], photos.label[some].to_numpy(), end)
    ood = (photos.kind == 'ood').to_numpy()
    if ood.any(): metrics['ood_rejected'] = rows.label[ood].isna().mean()
    return metrics


def release_and_size(contestant):
    command = [python_of(contestant), str((HERE/'installed.py').resolve()), *contestant.packages.split()]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def about(contestant):
    return dict(contestant=contestant.name, group=contestant.group, ours=contestant.library == 'gear_fastai')


def settings_of(contestant, epochs=None):
    "Network, image size and epochs of a run; where the contestant names none, those of the recipe of gear_fastai"
    from gear_fastai.recipes import RECIPES
    recipe = RECIPES.get(contestant.network)
    if epochs is None: epochs = recipe.epochs if contestant.epochs is None else contestant.epochs
    return dict(network=contestant.network, size=contestant.size or recipe.size, epochs=epochs,
                documented=contestant.documented)


def measure(contestant, data, photos, home, weights=None, **settings):
    "Row and curve of one contestant on the catalogue"
    model = Path(home, 'model')
    run = run_timed(training(contestant, data, model, weights, **settings), home)
    cold = [run_timed(predicting(contestant, model, photos.path[:1], home), home).first_s for _ in range(3)]
    rows, speed = predict(contestant, model, photos.path, home, warm=30)
    row = about(contestant) | settings_of(contestant, settings.get('epochs')) | dict(
        lines=code_lines(contestant.script), seconds=run.seconds, peak_mb=run.peak_mb, **score_all(rows, photos),
        cold_s=median(cold), **speed, loading=contestant.loading, **release_and_size(contestant),
        **photos.kind.value_counts().add_prefix('n_'))
    return row, pd.DataFrame(run.rows[-1]['curve']).assign(**about(contestant))


def image_files(folder):
    return sorted(f for f in Path(folder).rglob('*') if f.suffix.lower() in ('.jpg', '.jpeg', '.png'))


def by_class(folder, kind): return [dict(path=f, label=f.parent.name, kind=kind) for f in image_files(folder)]


def copy_photos(source, splits, data):
    "Copy the training and validation photos into class folders"
    for row in splits.itertuples():
        to = Path(data, row.split, row.label, Path(row.path).name)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(source, row.path), to)


def catalogue(home, short=False):
    "The dataset's folder, and a table of the photos to predict: path, label, kind"
    from gear_fastai.dataset import split_dataset
    from gear_fastai.sources import draw_sample
    source = Path(os.environ.get('GEAR_DATA') or draw_sample(Path(home, 'drawn'), n=8)).resolve()
    splits = split_dataset(source)
    if short: splits = splits.groupby(['label', 'split']).head(6)
    copy_photos(source, splits[splits.split != 'test'], Path(home, 'data'))
    test = splits[splits.split == 'test']
    rows = [dict(path=source/path, label=label, kind='test') for path, label in zip(test.path, test.label)]
    if outdoor := os.environ.get('GEAR_OUTDOOR'): rows += by_class(Path(outdoor).resolve(), 'outdoor')
    if ood := os.environ.get('GEAR_OOD'): rows += by_class(Path(ood).resolve(), 'ood')
    photos = pd.DataFrame(rows)
    return Path(home, 'data'), photos[::8].reset_index(drop=True) if short else photos


def timm_folder(file, dest, size=224):
    "A folder in timm's hub layout with the weights of a file"
    from timm import get_pretrained_cfg
    dest.mkdir()
    cfg = get_pretrained_cfg(LITE0)
    config = dict(architecture=LITE0, num_classes=cfg.num_classes, num_features=1280, pretrained_cfg=dict(
        input_size=[3, size, size], interpolation=cfg.interpolation, crop_pct=cfg.crop_pct, mean=list(cfg.mean),
        std=list(cfg.std), num_classes=cfg.num_classes, pool_size=list(cfg.pool_size), first_conv=cfg.first_conv,
        classifier=cfg.classifier))
    (dest/'config.json').write_text(json.dumps(config))
    shutil.copy(file, dest/'model.safetensors')
    return dest


def weights_of(contestant, home, size=224):
    "Pretrained weights in the form that the contestant reads; gear_fastai ships its own"
    file = os.environ.get('GEAR_WEIGHTS')
    if contestant.group == 'scratch' or contestant.library == 'gear_fastai' or not file: return None
    return file if contestant.library == 'fastai' else timm_folder(file, Path(home, 'weights'), size)


def tests_of(data): return sorted(f for f in Path(data).iterdir() if f.name.startswith('test'))


def measure_set(contestant, source, home, weights=None, n=20, size=96, epochs=None):
    "Row of one contestant on a small image set: accuracy on its test set and on each shifted one"
    from image_sets import make_dataset
    data = make_dataset(source, Path(home, source), n)
    learn_from = Path(home, 'data')
    for split in ('train', 'valid'): shutil.move(data/split, learn_from/split)
    run_timed(training(contestant, learn_from, Path(home, 'model'), weights, size, epochs), home)
    photos = pd.DataFrame([row for folder in tests_of(data) for row in by_class(folder, folder.name)])
    rows, _ = predict(contestant, Path(home, 'model'), photos.path, home)
    accuracy = (rows.top1 == photos.label).groupby(photos.kind).mean()
    n_train = len(image_files(learn_from/'train'))
    return dict(dataset=source, **about(contestant), n_train=n_train, **accuracy)


def merge_rows(file, new, keys):
    "Write a table; rows of `new` replace those with the same `keys`"
    if file.exists():
        old = pd.read_csv(file)
        done = new[keys].astype(str).agg('|'.join, axis=1)
        new = pd.concat([old[~old[keys].astype(str).agg('|'.join, axis=1).isin(done)], new])
    new.round(4).to_csv(file, index=False)


def attempt(what, f, *args, **kwargs):
    "Call `f` and say how it went; None if it failed"
    start = time.perf_counter()
    try: result = f(*args, **kwargs)
    except (RuntimeError, OSError, ValueError, subprocess.CalledProcessError) as e:
        return print(f'{what}: failed: {e}', file=sys.stderr, flush=True)
    print(f'{what}: {time.perf_counter() - start:.0f} s', flush=True)
    return result


def before(deadline, contestants):
    "Yield contestants while there is time; say which are left out"
    for c in contestants:
        if deadline is None or time.monotonic() < deadline: yield c
        else: print(f'{c.name}: left out, the budget is spent', file=sys.stderr, flush=True)


def bench_catalogue(contestants, out, short=False, deadline=None):
    "Write peers.csv and peers_curves.csv"
    with TemporaryDirectory() as home:
        data, photos = catalogue(home, short)
        for c in before(deadline, contestants):
            with TemporaryDirectory() as place:
                settings = dict(epochs=0 if c.epochs == 0 else 1) if short else {}
                if found := attempt(c.name, measure, c, data, photos, place, weights_of(c, place), **settings):
                    merge_rows(out/'peers.csv', pd.DataFrame([found[0]]), ['contestant'])
                    merge_rows(out/'peers_curves.csv', found[1], ['contestant'])


def bench_sets(contestants, out, short=False, deadline=None):
    "Write peers_datasets.csv"
    from image_sets import SOURCES
    for source in SOURCES:
        for c in before(deadline, contestants):
            with TemporaryDirectory() as place:
                settings = dict(n=4, epochs=0 if c.epochs == 0 else 1) if short else dict(epochs=c.set_epochs)
                weights = weights_of(c, place, 96)
                found = attempt(f'{source}, {c.name}', measure_set, c, source, place, weights, **settings)
                if found: merge_rows(out/'peers_datasets.csv', pd.DataFrame([found]), ['dataset', 'contestant'])


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', metavar='NAME', help='begin of the names of contestants')
    parser.add_argument('--part', choices=['catalogue', 'sets'], help='default: both')
    parser.add_argument('--short', action='store_true', help='a few photos and one epoch, to try the code')
    parser.add_argument('--budget', type=float, metavar='MINUTES', help='start no further contestant after this time')
    parser.add_argument('--out', type=Path, default=HERE.parent, help='folder of the CSV files')
    args = parser.parse_args(args)
    chosen = [c for c in CONTESTANTS if not args.only or c.name.startswith(tuple(args.only))]
    if not chosen: parser.error(f'--only: choose from {", ".join(c.name for c in CONTESTANTS)}')
    deadline = args.budget and time.monotonic() + 60*args.budget
    two_cores()
    if args.part != 'sets': bench_catalogue(chosen, args.out, args.short, deadline)
    if args.part != 'catalogue': bench_sets(chosen, args.out, args.short, deadline)


if __name__ == '__main__': main()
