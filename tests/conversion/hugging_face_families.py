"""Every model type of transformers: its attention classes, and how each is converted or why it is not.

``python -m tests.conversion.hugging_face_families`` builds a model of each type on the meta device, from its default
config, and writes docs/hugging_face.md.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig

from conditioned_attention.sites import find_sites

SECONDS = 20  # for one model type
_PAGE = Path(__file__).parents[2] / "docs" / "hugging_face.md"
_AUTO = [
    getattr(transformers, f"AutoModel{suffix}")
    for suffix in ("", "ForImageTextToText", "ForCausalLM", "ForMaskedLM", "ForTextToWaveform", "ForMaskGeneration")
]
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")

_PAGE_TEXT = """# Hugging Face transformers: what is converted

Written by `python -m tests.conversion.hugging_face_families` with transformers {version}.  Every model type is built
from its default config (with few experts), and every attention class in it is looked up as `precondition` does.
*interface*: through transformers' own attention interface; *hook* and *class swap*: a class with attention of its own.
A class that is not in a table is refused, and a report says so: nothing is converted in part without a word.

**Nystromformer**: transformers' own forward (5.23) raises for every mask of padding when there are fewer landmarks
than tokens, and mixes the examples of a batch whose length is half of `segment_means_seq_len`, without a word.
Converted, it masks padding as its authors do (queries, keys and convolved values are 0), and refuses other lengths and
masks.

| model types | attention class | how |
|---|---|---|
{rows}

**Without attention:** {without}.

**Not built by `AutoModel` from their default configs** (most are parts of models above; of others the defaults do not
fit together): {not_built}.
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


def main() -> None:
    rows: dict[tuple[str, str], list[str]] = {}
    without: list[str] = []
    not_built: list[str] = []
    for model_type in sorted(CONFIG_MAPPING):
        try:
            with limited(SECONDS):
                classes = attention_classes(model_type)
        except (Exception, SystemExit) as error:
            not_built.append(model_type)
            print(model_type, repr(error)[:200], file=sys.stderr, flush=True)
            continue
        for name, how in classes.items():
            rows.setdefault((name, how), []).append(model_type)
        if not classes:
            without.append(model_type)
    lines = [f"| {', '.join(types)} | {name} | {how.replace('|', '/')} |" for (name, how), types in rows.items()]
    _PAGE.parent.mkdir(exist_ok=True)
    _PAGE.write_text(
        _PAGE_TEXT.format(
            version=transformers.__version__,
            rows="\n".join(lines),
            without=", ".join(without),
            not_built=", ".join(not_built),
        )
    )


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
