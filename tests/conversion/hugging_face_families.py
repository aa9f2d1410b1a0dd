"""Every model type of transformers: its attention classes, and how each is converted or why it is not.

``python -m tests.conversion.hugging_face_families`` builds a short model of each type on the meta device, from its
default config, and writes docs/hugging_face.md.
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
_LAYERS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth",
    "num_encoder_layers", "num_decoder_layers", "num_experts", "num_local_experts", "n_routed_experts",
)  # fmt: skip

_HEAD = """# Hugging Face transformers: what is converted

Written by `python -m tests.conversion.hugging_face_families` with transformers {version}.  Every model type is built
from its default config (with fewer layers), and every attention class in it is looked up as `precondition` does.
*interface*: through transformers' own attention interface; *hook* and *class swap*: a class with attention of its own.
A class that is not in a table is refused, and a report says so: nothing is converted in part without a word.

| model types | attention class | how |
|---|---|---|
"""


def attention_classes(model_type: str) -> dict[str, str]:
    """The attention classes of a model type, each with the name of its mechanism or with the reason against it."""
    found: dict[str, str] = {}
    for site in find_sites(build(model_type)):
        name = type(site.module).__name__
        found[name] = site.mechanism.name if site.mechanism is not None else "refused: " + site.reason
    return found


def build(model_type: str) -> torch.nn.Module:
    """A short model on the meta device, with the default sizes otherwise."""
    config = _shortened(CONFIG_MAPPING[model_type]())
    errors: list[Exception] = []
    for auto in _AUTO:
        try:
            with torch.device("meta"):
                return auto.from_config(config)
        except Exception as error:
            errors.append(error)
    raise errors[0]


def _shortened(config: PreTrainedConfig) -> PreTrainedConfig:
    for name, value in vars(config).copy().items():
        if isinstance(value, PreTrainedConfig):
            _shortened(value)
        elif name in _LAYERS and isinstance(value, int) and value > 4:
            with suppress(Exception):  # some derive it from other values
                setattr(config, name, 4)
    return config


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
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
    for model_type in sorted(CONFIG_MAPPING):
        try:
            with _limited(SECONDS):
                classes = attention_classes(model_type)
        except (Exception, SystemExit) as error:
            classes = {"–": f"not built: {type(error).__name__}"}
        for name, how in (classes or {"–": "no attention"}).items():
            rows.setdefault((name, how), []).append(model_type)
        print(model_type, classes, file=sys.stderr, flush=True)
    lines = [f"| {', '.join(types)} | {name} | {how.replace('|', '/')} |" for (name, how), types in rows.items()]
    _PAGE.parent.mkdir(exist_ok=True)
    _PAGE.write_text(_HEAD.format(version=transformers.__version__) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    from conditioned_attention._torchvision import make_importable

    make_importable()
    transformers.logging.set_verbosity_error()
    main()
