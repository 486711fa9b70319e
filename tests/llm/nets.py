"""Tiny language models of every supported family, with random weights."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

VOCABULARY = 48


def _small(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **more,
    }  # fmt: skip


_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_small())),
    "llama-tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_small(tie_word_embeddings=True))),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_small())),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_small(head_dim=4))),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**_small(head_dim=4))),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**_GPT2)),
    "gpt-neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**_small())),
}


def model(family: str, seed: int = 0) -> Any:
    """Build a model in float64, in evaluation mode, with weights that differ from their initial ones and zeros."""
    torch.manual_seed(seed)
    net = FAMILIES[family]().double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def mixtral() -> Any:
    """Build a model that is a mixture of experts already."""
    return tf.MixtralForCausalLM(tf.MixtralConfig(**_small(num_local_experts=4)))
