"""Hugging Face's Trainer, with condition numbers in its log.

python examples/trainer.py
"""

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from conditioned_attention import ConditionMonitor, apply_conditioning, precondition

digits = load_digits()
x, y = torch.tensor(digits.images).float().unsqueeze(1) / 8 - 1, torch.tensor(digits.target)
samples = [{"pixel_values": image, "labels": label} for image, label in zip(x, y)]

sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes))
precondition(model)

arguments = TrainingArguments(
    "run", max_steps=20, per_device_train_batch_size=32, learning_rate=2e-3, logging_steps=10, report_to=[],
    disable_tqdm=True, use_cpu=True,
)  # fmt: skip
trainer = Trainer(model, arguments, train_dataset=samples[:1400])
monitor = ConditionMonitor(model, x[1400:1404], every=10, path="conditions.jsonl")
trainer.add_callback(monitor.trainer_callback(trainer))
trainer.train()
print(monitor)

# config.json remembers the conversion; without the second line the loaded model raises when it runs.
model.save_pretrained("checkpoint")
loaded = ViTForImageClassification.from_pretrained("checkpoint")
apply_conditioning(loaded)

model.eval()
with torch.no_grad():
    print("the same output:", torch.equal(loaded(x[1400:]).logits, model(x[1400:]).logits))
