"""Lightning: convert in the module's __init__, watch by a callback.

python examples/lightning_loop.py
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from conditioned_attention import ConditionMonitor, precondition

digits = load_digits()
x, y = torch.tensor(digits.images).float().flatten(2) / 8 - 1, torch.tensor(digits.target)


class Digits(lightning.LightningModule):
    """A row of the image is a token."""

    def __init__(self):
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.embed, self.encoder = torch.nn.Linear(8, 32), torch.nn.TransformerEncoder(layer, 2)
        self.classify = torch.nn.Linear(32, 10)
        precondition(self)  # before Lightning makes the optimizer and wraps the model

    def forward(self, images):
        return self.classify(self.encoder(self.embed(images)).mean(1))

    def training_step(self, batch, index):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


model = Digits()
monitor = ConditionMonitor(model, x[1400:1404], every=10, path="conditions.jsonl")
trainer = lightning.Trainer(
    max_steps=20, accelerator="cpu", callbacks=[monitor.lightning_callback()], logger=False, enable_progress_bar=False,
    enable_checkpointing=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(model, DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=32, shuffle=True))
print(monitor)
