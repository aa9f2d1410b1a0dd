"""The Long Range Arena's model in numpy and float64, written from the published equations, one head at a time."""

import math

import numpy as np
from scipy.special import erf, softmax


def logits(weights, ids, *, heads, landmarks=None, start="batch_columns", rows=None):
    """Logits (B, classes) of ids (B, N); without ``landmarks`` with softmax attention; ``rows``: whose norms set C.

    ``weights`` are float64 arrays by the model's names.
    """
    features = pooled(weights, ids, heads, landmarks, start, rows)
    return classified(weights, features)


def pair_logits(weights, first, second, **options):
    """Of two texts each, with the features that the published head for Retrieval reads."""
    a, b = (pooled(weights, ids, **options) for ids in (first, second))
    return classified(weights, np.concatenate([a, b, a * b, a - b], axis=-1))


def classified(weights, features):
    hidden = np.maximum(linear(weights, "classifier.0", features), 0)
    return linear(weights, "classifier.2", hidden)


def pooled(weights, ids, heads, landmarks=None, start="batch_columns", rows=None):
    mask = (ids != 0).astype(float)
    x = weights["encoder.tokens.weight"][ids] + weights["encoder.positions.weight"][: ids.shape[1]]
    for name in sorted({key.split(".")[2] for key in weights if key.startswith("encoder.blocks.")}):
        block = f"encoder.blocks.{name}"
        y = norm(weights, f"{block}.norm1", x)
        x = x + attention(weights, f"{block}.attention", y, mask, heads, landmarks, start, rows)
        y = linear(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.norm2", x))
        x = x + linear(weights, f"{block}.mlp.fc2", y * (1 + erf(y / math.sqrt(2))) / 2)
    return (norm(weights, "encoder.norm", x) * mask[..., None]).sum(1) / ids.shape[1]


def attention(weights, name, x, mask, heads, landmarks, start, rows):
    q, k, v = (linear(weights, f"{name}.{role}_proj", x) for role in "qkv")
    width = x.shape[-1] // heads
    parts = [np.s_[:, :, h * width : (h + 1) * width] for h in range(heads)]
    kernel = weights.get(f"{name}.convolution.weight")
    if landmarks is None:
        matrices = [softmax_matrix(q[part], k[part], mask) for part in parts]
    else:
        matrices = nystrom_matrices([(q[part], k[part]) for part in parts], mask, landmarks, start)
    out = []
    for h, (matrix, part) in enumerate(zip(matrices, parts)):
        head = matrix @ v[part]
        if rows is not None:
            head = head / np.linalg.norm(head if rows == "output" else matrix, axis=-1, keepdims=True)
        if kernel is not None:
            head = head + convolved(v[part] * mask[..., None], kernel[h, 0, :, 0])
        out.append(head)
    return linear(weights, f"{name}.o_proj", np.concatenate(out, axis=-1))


def softmax_matrix(q, k, mask):
    scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]) - 1e6 * (1 - mask)[:, None]
    return softmax(scores, axis=-1)


def nystrom_matrices(heads, mask, landmarks, start):
    """F Z B of each head; the number that Z starts with may be one of all heads and examples."""
    found = []
    for q, k in heads:
        q, k = (x * mask[..., None] / q.shape[-1] ** 0.25 for x in (q, k))
        size = q.shape[1] // landmarks
        of_q, of_k = (np.stack([x[:, i * size : (i + 1) * size].mean(1) for i in range(landmarks)], 1) for x in (q, k))
        to = softmax(q @ of_k.swapaxes(1, 2), axis=-1)
        between = softmax(of_q @ of_k.swapaxes(1, 2), axis=-1)
        back = softmax(of_q @ k.swapaxes(1, 2) - 1e9 * (1 - mask)[:, None], axis=-1)
        found.append((to, between, back))
    columns = max(between.sum(1).max() for _, between, _ in found)
    widest = max(between.sum(2).max() for _, between, _ in found)
    eye = np.eye(landmarks)
    products = []
    for to, between, back in found:
        by = {"batch_columns": columns, "batch_columns_and_rows": columns * widest}.get(start)
        z = between.swapaxes(1, 2) / (between.sum(1).max(-1)[:, None, None] if by is None else by)
        for _ in range(6):
            az = between @ z
            z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
        products.append(to @ z @ back)
    return products


def convolved(x, taps):
    """Along the tokens (B, N, D), zeros outside."""
    half, out = len(taps) // 2, np.zeros_like(x)
    for i in range(x.shape[1]):
        for j, tap in enumerate(taps):
            if 0 <= i + j - half < x.shape[1]:
                out[:, i] += tap * x[:, i + j - half]
    return out


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights, name, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
