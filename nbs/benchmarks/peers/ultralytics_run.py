"Ultralytics: `yolo classify train` and `predict`"
from contract import main


def train(data, out, curve, model, size, epochs, seed, weights):
    from ultralytics import YOLO
    yolo = YOLO(model)
    yolo.add_callback('on_fit_epoch_end', lambda run: curve.add(run.metrics['metrics/accuracy_top1']))
    yolo.train(data=data, epochs=epochs, imgsz=size, seed=seed, project=out, name='run')


def load(model):
    from ultralytics import YOLO
    yolo = YOLO(f'{model}/run/weights/best.pt')
    def predict(files):
        results = yolo.predict(files, stream=True, verbose=False)
        best = [(r.names[r.probs.top1], r.probs.top1conf) for r in results]
        return [(label, label, confidence) for label, confidence in best]
    return predict


if __name__ == '__main__': main(train, load)
