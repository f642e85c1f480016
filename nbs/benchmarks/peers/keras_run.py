"Keras: the convolutional network of TensorFlow's image classification tutorial"
from contract import main


def train(data, out, curve, model, size, epochs, seed, weights):
    import json
    import keras
    from keras import layers
    from pathlib import Path
    keras.utils.set_random_seed(seed)
    def dataset(split):
        return keras.utils.image_dataset_from_directory(f'{data}/{split}', image_size=(size, size), seed=seed)
    photos = dataset('train')
    labels = photos.class_names
    network = keras.Sequential([
        layers.Input((size, size, 3)),
        layers.RandomFlip('horizontal'), layers.RandomRotation(.1), layers.RandomZoom(.1), layers.Rescaling(1/255),
        layers.Conv2D(16, 3, padding='same', activation='relu'), layers.MaxPooling2D(),
        layers.Conv2D(32, 3, padding='same', activation='relu'), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, padding='same', activation='relu'), layers.MaxPooling2D(),
        layers.Dropout(.2), layers.Flatten(), layers.Dense(128, activation='relu'), layers.Dense(len(labels))])
    network.compile('adam', keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=['accuracy'])
    record = keras.callbacks.LambdaCallback(on_epoch_end=lambda i, logs: curve.add(logs['val_accuracy']))
    network.fit(photos.cache().shuffle(1000).prefetch(2), validation_data=dataset('valid').cache().prefetch(2),
                epochs=epochs, callbacks=[record])
    Path(out).mkdir()
    network.save(f'{out}/model.keras')
    Path(out, 'labels.json').write_text(json.dumps(labels))


def load(model):
    import json
    import keras, numpy as np
    from pathlib import Path
    network = keras.models.load_model(f'{model}/model.keras')
    labels = json.loads(Path(model, 'labels.json').read_text())
    size = network.input_shape[1:3]
    def pixels(file): return keras.utils.img_to_array(keras.utils.load_img(file, target_size=size))
    def predict(files):
        logits = network.predict(np.stack([pixels(file) for file in files]), verbose=0)
        probabilities = np.asarray(keras.ops.softmax(logits))
        return [(labels[p.argmax()], labels[p.argmax()], p.max()) for p in probabilities]
    return predict


if __name__ == '__main__': main(train, load)
