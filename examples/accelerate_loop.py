"""Accelerate, on one process or several; on GPUs with FSDP2 (which has not run here, for want of GPUs).

python examples/accelerate_loop.py
accelerate launch --num_processes 8 --use_fsdp --fsdp_version 2 examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from conditioned_attention import ConditionMonitor, precondition

torch.manual_seed(0)
accelerator = Accelerator()
model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_positions=64, n_embd=32, n_layer=2, n_head=4))
precondition(model)  # before prepare() wraps or shards the model

windows = torch.tensor(list(("Each row of each head has length one. " * 80).encode())).split(32)
loader = DataLoader(windows[:90], batch_size=15, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

probe = {"input_ids": torch.stack(windows[90:94]).to(accelerator.device)}
monitor = ConditionMonitor(model, probe, every=5, path="conditions.jsonl")

step = 0
for _ in range(2):
    for batch in loader:
        monitor.step(step)  # in every process, as with FSDP2 the forward pass gathers weights; the first one writes
        loss = model(input_ids=batch, labels=batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        step += 1

accelerator.print(f"loss {loss.item():.3f} after {step} steps on {accelerator.num_processes} process(es)")
accelerator.print(monitor)
