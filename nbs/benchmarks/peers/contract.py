"""The command line that every peer's script shares.

    python X_run.py train DATA OUT [--model NAME] [--size PIXELS] [--epochs N] [--seed N] [--weights FILE]
    python X_run.py predict MODEL LIST [--warm N]

DATA has the class folders in `train/` and `valid/`, LIST is a text file with a path per line. Both print JSON lines.
"""
import argparse, csv, json, os, sys, time

START = float(os.environ.get('BENCH_START', time.time()))  # when the harness started this process


def own_stdout():
    "The real standard output; whatever the libraries print goes to standard error"
    real = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    return real


class Curve(list):
    "Validation accuracy over the seconds since the process was started"
    def add(self, accuracy, seconds_ago=0):
        self.append(dict(seconds=time.time() - START - seconds_ago, accuracy=float(accuracy)))

    def of_table(self, file):
        "Read a finished run from a CSV file with the `seconds` that each epoch took"
        with open(file, encoding='utf-8') as f: epochs = list(csv.DictReader(f))
        for i, row in enumerate(epochs): self.add(row['accuracy'], sum(float(x['seconds']) for x in epochs[i + 1:]))


def options(args):
    parser = argparse.ArgumentParser()
    modes = parser.add_subparsers(dest='mode', required=True)
    train = modes.add_parser('train')
    train.add_argument('data')
    train.add_argument('out')
    train.add_argument('--model')
    train.add_argument('--size', type=int)
    train.add_argument('--epochs', type=int)
    train.add_argument('--seed', type=int, default=42)
    train.add_argument('--weights')
    predict = modes.add_parser('predict')
    predict.add_argument('model')
    predict.add_argument('list')
    predict.add_argument('--warm', type=int, default=0, help='photos to time one by one')
    return vars(parser.parse_args(args))


def as_row(label, top1, confidence): return dict(label=label, top1=top1, confidence=float(confidence))


def seconds(f, *args):
    start = time.perf_counter()
    f(*args)
    return time.perf_counter() - start


def predictions(predict, files, warm):  # `predict`: paths → (label or None, top1, confidence)
    "Yield the first prediction at once, then the latency of single photos, then the time and rows of all"
    yield as_row(*predict(files[:1])[0])
    yield dict(warm_s=[seconds(predict, [file]) for file in files[:warm]])
    if len(files) == 1: return
    start = time.perf_counter()
    rows = predict(files)
    yield dict(bulk_s=time.perf_counter() - start)
    for row in rows: yield as_row(*row)


def main(train, load, args=None):
    "Run `train(data, out, curve, …)`, or predict with the function that `load(model)` returns"
    out = own_stdout()
    args = options(args)
    mode = args.pop('mode')
    if mode == 'train':
        curve = Curve()
        train(curve=curve, **args)
        print(json.dumps(dict(curve=curve)), file=out, flush=True)
    else:
        with open(args['list'], encoding='utf-8') as f: files = f.read().splitlines()
        for row in predictions(load(args['model']), files, args['warm']): print(json.dumps(row), file=out, flush=True)
