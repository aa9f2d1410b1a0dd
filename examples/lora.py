"""LoRA by peft on a model with spectral conditioning.

C changes what a pretrained model computes; λ I with a small λ changes little. Look at κ before you decide.
python examples/lora.py
"""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from conditioned_attention import apply_conditioning, spectral_condition

torch.manual_seed(0)
config = GPT2Config(vocab_size=128, n_positions=64, n_embd=32, n_layer=2, n_head=4)
GPT2LMHeadModel(config).save_pretrained("base")  # stands for your pretrained model
text = torch.tensor(list(("Rows of one length. " * 20).encode())).view(-1, 40)

model = GPT2LMHeadModel.from_pretrained("base")
print(spectral_condition(model))
lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], fan_in_fan_out=True)
model = get_peft_model(model, lora)

optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
for step in range(10):
    optimizer.zero_grad()
    loss = model(input_ids=text, labels=text).loss
    loss.backward()
    optimizer.step()
    print(f"step {step}, loss {loss.item():.3f}")

# The adapter remembers how its base was conditioned: after loading, say so to the base.
model.save_pretrained("adapter")
loaded = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained("base"), "adapter")
apply_conditioning(loaded)

model.eval(), loaded.eval()
with torch.no_grad():
    print("the same output:", torch.allclose(loaded(text).logits, model(text).logits, atol=1e-5))
