"AutoGluon: `MultiModalPredictor`, as in its image prediction quick start"
from contract import main


def local_checkpoint(weights, out):
    "Write `weights` as the local folder that AutoGluon reads: without the classifier, in torch's format"
    import shutil, torch
    from pathlib import Path
    from safetensors.torch import load_file
    folder = Path(f'{out}-weights')
    folder.mkdir()
    shutil.copy(f'{weights}/config.json', folder)
    backbone = {k: v for k, v in load_file(f'{weights}/model.safetensors').items() if not k.startswith('classifier')}
    torch.save(backbone, folder/'pytorch_model.bin')
    return str(folder)


def train(data, out, curve, model, size, epochs, seed, weights):
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor
    from pathlib import Path
    def table(split):
        files = sorted(Path(data, split).glob('*/*'))
        return pd.DataFrame(dict(image=map(str, files), label=[file.parent.name for file in files]))
    predictor = MultiModalPredictor(label='label', path=out)
    predictor.fit(table('train'), tuning_data=table('valid'), seed=seed, hyperparameters={
        'model.names': ['timm_image'], 'model.timm_image.checkpoint_name': local_checkpoint(weights, out),
        'model.timm_image.image_norm': 'inception', 'model.timm_image.image_size': size, 'optim.max_epochs': epochs})
    curve.add(predictor.fit_summary()['val_accuracy'])


def load(model):
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor
    predictor = MultiModalPredictor.load(model)
    def predict(files):
        probabilities = predictor.predict_proba(pd.DataFrame(dict(image=files)))
        best = zip(probabilities.idxmax(axis=1), probabilities.max(axis=1))
        return [(label, label, confidence) for label, confidence in best]
    return predict


if __name__ == '__main__': main(train, load)
