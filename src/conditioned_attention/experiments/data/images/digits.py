"""The 1,797 handwritten digits that scikit-learn ships: 8 × 8 grey pixels, 10 classes (UCI, CC BY 4.0)."""

from __future__ import annotations

import numpy as np
import torch

from conditioned_attention.experiments.data.fingerprint import checksum_of_bytes
from conditioned_attention.experiments.data.images.arrays import ImageArrays


def load_digits() -> tuple[ImageArrays, ImageArrays]:
    """Loads (training set of 1,437, evaluation set of 360), the same stratified split at every call.

    Pixels from 0 to 16 are scaled so that the training set has mean 0 and standard deviation 1.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    digits = datasets.load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.as_tensor(digits.target, dtype=torch.int64)
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=digits.target, random_state=0)
    mean, std = images[train].mean(), images[train].std()
    images = (images - mean) / std
    origin = checksum_of_bytes(digits.images.astype(np.uint8, order="C"))
    return ImageArrays(images[train], labels[train], origin), ImageArrays(images[test], labels[test], origin)
