"""A recipe that needs torch alone, for scripts and worker processes that have to start quickly."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.data import TensorDataset

from conditioned_attention.experiments.evidence.metric import Metric
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training


class Network(nn.Module):
    """One layer of attention over 4 tokens of 8 features, and two classes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Score:
    def __init__(self):
        self.right = self.seen = 0

    def update(self, model, batch, gather):
        x, y = gather(batch)
        self.right += (model(x).argmax(-1) == y).sum().item()
        self.seen += len(y)

    def compute(self):
        return {"score": self.right / self.seen}


class Numbers(Task):
    """Whether the first feature of the first token is positive, of 32 samples."""

    metric = Metric("accuracy")

    def __init__(self):
        x = torch.randn(32, 4, 8, generator=torch.Generator().manual_seed(0))
        self.data = TensorDataset(x, (x[:, 0, 0] > 0).long())

    def build_model(self):
        return Network()

    def train_data(self):
        return self.data

    def eval_data(self):
        return self.data

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluator(self):
        return Score()

    def probe(self):
        return self.data.tensors[0][:4]


@dataclass(frozen=True)
class Light:
    training: Training = field(default_factory=lambda: Training(epochs=2, batch_size=16, monitor_every=0))

    def task(self, *, tuning=False):
        return Numbers()
