"gear_fastai: the commands of its README"
from contract import main


def train(data, out, curve, model, size, epochs, seed, weights):
    from gear_fastai.cli import main
    command = ['train', data, '--arch', model, '--out', out, '--seed', str(seed)]
    if size is not None: command += ['--size', str(size)]
    if epochs is not None: command += ['--epochs', str(epochs)]
    main(command, standalone_mode=False)
    curve.of_table(f'{out}/history.csv')


def load(model):
    from gear_fastai import GearClassifier
    predict = GearClassifier(model).predict
    return lambda files: [(p.label, p.top1, p.confidence) for p in predict(files)]


if __name__ == '__main__': main(train, load)
