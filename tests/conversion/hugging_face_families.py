"""Every model type of transformers: its attention classes, and how each is converted or why it is not.

``python -m tests.conversion.hugging_face_families`` builds a model of each type on the meta device, from its default
config, and writes docs/hugging_face.md.
"""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig

from conditioned_attention.sites import find_sites
from tests.conversion.answers import WORDS, by_letter, by_reason, count

SECONDS = 20  # for one model type
PAGE = Path(__file__).parents[2] / "docs" / "hugging_face.md"
_AUTO = [
    getattr(transformers, f"AutoModel{suffix}")
    for suffix in ("", "ForImageTextToText", "ForCausalLM", "ForMaskedLM", "ForTextToWaveform", "ForMaskGeneration")
]
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")

_PAGE_TEXT = """# Hugging Face transformers, type by type

Does `precondition` convert it? For transformers {version}; every model type is built from its default config (with
few experts), and each attention class in it is looked up as `precondition` does.
Model types: {count}.

{words}

How:

- **interface**: through transformers' own attention interface.
- **hook** and **class swap**: a class that implements its attention itself.
- **refused** and **no attention**: for the reason given [below](#why-not) and in the conversion's report.

Written by `python -m tests.conversion.hugging_face_families`.

**Nystromformer**: transformers' own forward (5.23) raises for every padding mask when there are fewer landmarks than
tokens, and silently mixes the examples of a batch whose length is half of `segment_means_seq_len`. After conversion it
masks padding as its authors do (queries, keys and convolved values are set to 0), and refuses other lengths and masks.

{tables}
## Why not

{reasons}

## Not looked at

`AutoModel` does not build these from their default configs; most are parts of the models above, and for the others the
default values do not fit together: {not_built}.
"""


def attention_classes(model_type: str) -> dict[str, str]:
    """The attention classes of a model type, each with the name of its mechanism or with the reason against it."""
    found: dict[str, str] = {}
    for site in find_sites(build(model_type)):
        name = type(site.module).__name__
        against = ("refused: " if site.attention else "no attention: ") + site.reason
        found[name] = against if site.mechanism is None else site.mechanism.name
    return found


def build(model_type: str) -> torch.nn.Module:
    """On the meta device, with the default sizes and few experts."""
    config = _slim(CONFIG_MAPPING[model_type]())
    errors: list[Exception] = []
    for auto in _AUTO:
        try:
            with torch.device("meta"):
                return auto.from_config(config)
        except Exception as error:
            errors.append(error)
    raise errors[0]


def _slim(config: PreTrainedConfig) -> PreTrainedConfig:
    if getattr(config, "prediction_length", 0) is None:  # forecasts of nothing cannot be built
        config.prediction_length = config.context_length = 8
    for name, value in vars(config).copy().items():
        if isinstance(value, PreTrainedConfig):
            _slim(value)
        elif name in _EXPERTS and isinstance(value, int) and value > 4:
            with suppress(Exception):  # some derive it from other values
                setattr(config, name, 4)
    return config


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def give_up(signum: int, frame: object) -> None:
        raise TimeoutError(f"takes more than {seconds} seconds")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def page(found: dict[str, dict[str, str]], not_built: list[str]) -> str:
    """The text of docs/hugging_face.md.

    Args:
        found: by model type its `attention_classes`.
        not_built: the other model types.
    """
    ways = {name: ways_of(classes) for name, classes in found.items()}
    reasons = {cls: how.partition(": ")[2] for classes in found.values() for cls, how in classes.items() if ": " in how}
    return _PAGE_TEXT.format(
        version=transformers.__version__,
        count=count(ways),
        words=WORDS,
        tables="\n".join(by_letter(ways, "model type")),
        reasons="\n".join(by_reason({cls: _general(cls, reason) for cls, reason in reasons.items()})),
        not_built=", ".join(not_built),
    )


def ways_of(classes: dict[str, str]) -> dict[str, str]:
    """`attention_classes` without the reasons."""
    return {cls: how.partition(": ")[0] for cls, how in classes.items()}


def _general(cls: str, reason: str) -> str:
    """Without the path of the class, so that one reason is one line."""
    return re.sub(rf"^transformers\.\S*\.{cls} ", f"{cls} ", reason)


def main() -> None:
    found: dict[str, dict[str, str]] = {}
    not_built: list[str] = []
    for model_type in sorted(CONFIG_MAPPING):
        try:
            with limited(SECONDS):
                found[model_type] = attention_classes(model_type)
        except (Exception, SystemExit) as error:
            not_built.append(model_type)
            print(model_type, repr(error)[:200], file=sys.stderr, flush=True)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(found, not_built))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
