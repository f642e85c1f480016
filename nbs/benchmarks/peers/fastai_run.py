"Plain fastai: `vision_learner` and `fine_tune`, as in its quick start"
from contract import main


def train(data, out, curve, model, size, epochs, seed, weights):
    from fastai.vision.all import accuracy, aug_transforms, Callback, ImageDataLoaders, Resize
    from fastai.vision.all import set_seed, vision_learner
    set_seed(seed)
    dls = ImageDataLoaders.from_folder(data, item_tfms=Resize(size), batch_tfms=aug_transforms())
    learn = vision_learner(dls, model, metrics=accuracy, pretrained_cfg_overlay=dict(file=weights))
    record = Callback(after_epoch=lambda self: curve.add(self.learn.metrics[0].value))
    with learn.no_bar(): learn.fine_tune(epochs, cbs=record)
    learn.export(out)


def load(model):
    from fastai.vision.all import load_learner
    learn = load_learner(model)
    vocab = learn.dls.vocab
    def predict(files):
        with learn.no_bar():
            if len(files) == 1: probabilities = learn.predict(files[0])[2][None]
            else: probabilities = learn.get_preds(dl=learn.dls.test_dl(files))[0]
        return [(vocab[p.argmax()], vocab[p.argmax()], p.max()) for p in probabilities]
    return predict


if __name__ == '__main__': main(train, load)
