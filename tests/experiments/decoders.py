"""A tiny pretrained decoder, as ``save_pretrained`` leaves it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from conditioned_attention.experiments.data.text.byte_pairs import END, train_byte_pairs

TEXT = "\n\n".join(f"The {i % 9} cat {('sat', 'lay')[i % 2]} on the {i * 5 % 9} mat." for i in range(600))


def write_decoder(folder, wrap=lambda model: model, context=64):
    """A Llama of two layers with fresh, large weights and a tokenizer of 300 byte pairs."""
    made = PreTrainedTokenizerFast(tokenizer_object=train_byte_pairs(TEXT.split("\n\n"), 300), eos_token=END)
    config = LlamaConfig(
        vocab_size=304, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=context, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    wrap(model)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def write_text(file):
    file.write_text(TEXT)
    return file
