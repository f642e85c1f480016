"Hugging Face Transformers: `Trainer`, as in its image classification guide, and `pipeline`"
from contract import main


def train(data, out, curve, model, size, epochs, seed, weights):
    import numpy as np
    from datasets import load_dataset
    from torchvision.transforms import Compose, Normalize, RandomResizedCrop, ToTensor
    from transformers import AutoImageProcessor, AutoModelForImageClassification, DefaultDataCollator
    from transformers import Trainer, TrainingArguments, set_seed
    set_seed(seed)
    dataset = load_dataset('imagefolder', data_dir=data)
    labels = dataset['train'].features['label'].names
    processor = AutoImageProcessor.from_pretrained(weights)
    network = AutoModelForImageClassification.from_pretrained(
        weights, num_labels=len(labels), id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)}, ignore_mismatched_sizes=True)
    config = processor.data_config
    augment = Compose([RandomResizedCrop(size), ToTensor(), Normalize(config['mean'], config['std'])])
    def augmented(rows):
        rows['pixel_values'] = [augment(image.convert('RGB')) for image in rows.pop('image')]
        return rows
    def processed(rows):
        images = [image.convert('RGB') for image in rows.pop('image')]
        rows['pixel_values'] = [processor(image, return_tensors='pt')['pixel_values'][0] for image in images]
        return rows
    def metrics(predicted):
        accuracy = np.mean(predicted.predictions.argmax(1) == predicted.label_ids)
        curve.add(accuracy)
        return dict(accuracy=accuracy)
    args = TrainingArguments(
        out, remove_unused_columns=False, eval_strategy='epoch', save_strategy='epoch', learning_rate=5e-5,
        per_device_train_batch_size=16, gradient_accumulation_steps=4, per_device_eval_batch_size=16,
        num_train_epochs=epochs, warmup_steps=.1, logging_steps=10, load_best_model_at_end=True,
        metric_for_best_model='accuracy', report_to='none', seed=seed)
    trainer = Trainer(
        network, args, DefaultDataCollator(), dataset['train'].with_transform(augmented),
        dataset['validation'].with_transform(processed), processing_class=processor, compute_metrics=metrics)
    trainer.train()
    trainer.save_model(out)


def load(model):
    from transformers import pipeline
    classify = pipeline('image-classification', model=model)
    def predict(files):
        best = [rows[0] for rows in classify(files, top_k=1)]
        return [(row['label'], row['label'], row['score']) for row in best]
    return predict


if __name__ == '__main__': main(train, load)
