"""The base model of a run: a transformers folder, or a tiny Llama over bytes."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from smatcli.config.llm import LlmModel
from smatcli.data.counted import counted_key
from smatcli.errors import UserError


@dataclass(frozen=True)
class Base:
    """A causal language model in fp32 and in evaluation mode, with its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def pad(self) -> int:
        """Token id of padding. Padding is masked by position, so the end-of-text token serves where there is none."""
        own = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if own is None else own)

    @property
    def longest(self) -> int | None:
        """Most tokens of a sequence, if the model has a limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)


def tiny_base(config: LlmModel, context: int, seed: int) -> Base:
    """Return a Llama with random weights, a function of `seed`, over the bytes of text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from smatcli.llm.data.bytes import byte_tokenizer

    tokenizer = byte_tokenizer()
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=-(-config.hidden * 8 // 3 // 16) * 16,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=max(2048, 2 * context),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_key("llm-base", seed) % 2**63)
        model: Any = LlamaForCausalLM(settings)
    return Base(model.eval(), tokenizer)


def load_base(folder: Path | str) -> Base:
    """Load a transformers folder: weights as safetensors, no code from the folder. UserError for a folder that is not one."""
    import transformers

    path = Path(folder)
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: is not the folder of a transformers model (it has no config.json)")
    _silence()
    tokenizer = load_tokenizer(path)
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=torch.float32, attn_implementation="sdpa"
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(f"{path}: cannot be loaded as a causal language model: {' '.join(str(error).split())[:300]}") from None
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        rows = model.get_input_embeddings().num_embeddings
        raise UserError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the model embeds {rows}; they do not belong together")
    return Base(model.eval(), tokenizer)


def load_tokenizer(folder: Path | str) -> Any:
    """Load the tokenizer of a transformers folder; UserError if there is none."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(Path(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{folder}: has no tokenizer that can be loaded: {' '.join(str(error).split())[:200]}") from None


def save_base(base: Base, folder: Path) -> None:
    """Write a plain transformers folder. The folder appears whole or not at all; UserError if it exists."""
    if folder.exists():
        raise UserError(f"{folder} exists; choose another folder")
    draft = folder.with_name(f".{folder.name}.draft")
    if draft.exists():
        shutil.rmtree(draft)
    _silence()
    base.model.save_pretrained(draft, safe_serialization=True)
    base.tokenizer.save_pretrained(draft)
    draft.rename(folder)


def _silence() -> None:
    """Switch off transformers' warnings and progress bars: the reporter shows progress."""
    import transformers

    logging = cast(Any, transformers.logging)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def base_hash(folder: Path | str) -> str:
    """Return the SHA-256 of the weight files of a transformers folder."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.safetensors")):
        with file.open("rb") as handle:
            while block := handle.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
