"""What processes of tests need, imported by their server: see `tests.processes`."""

import os

import accelerate  # noqa: F401
import matplotlib.figure  # noqa: F401
import sklearn.datasets  # noqa: F401
import torchmetrics  # noqa: F401
import transformers  # noqa: F401

import tests.experiments.tiny  # noqa: F401

os.fsync = lambda descriptor: None  # as in tests.plugin
