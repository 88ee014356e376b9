"""The language model and its text tokenizer: built new, or read from a folder, a preset or the hub."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.errors import HybridTokenizerError, absent, first_line
from hybrid_tokenizer.language.config import LanguageModelConfig
from hybrid_tokenizer.language.llama import FactorisedLlamaConfig, FactorisedLlamaForCausalLM
from hybrid_tokenizer.language.places import num_places, place_vectors
from hybrid_tokenizer.language.vocabulary import (
    VOCABULARY_NAME,
    Codebooks,
    check_model,
    document_boundaries,
    load_vocabulary,
    padded_rows,
    resize_embeddings,
)
from hybrid_tokenizer.presets import PRESETS
from hybrid_tokenizer.text import quiet_transformers
from hybrid_tokenizer.tokens import HybridVocabulary, TokenSource

TOKENIZER_FILES = ("*.json", "*.txt", "*.model")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors")
PAD, BEGIN, END = "<pad>", "<s>", "</s>"
USUAL_RANGE, USUAL_WIDTH = 0.02, 1024
"""Standard deviation of new weights, and the width at which it suits: products keep their size at any width."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""What transformers raises for a folder without a model or tokenizer."""


class LanguageModel(NamedTuple):
    """A causal model, with adapters or without, its tokenizer and its image vocabulary."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    vocabulary: HybridVocabulary


def train_text_tokenizer(captions: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `size` ids in lower case: any text has ids, and those of the captions are short."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[PAD, BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN, eos_token=END)


def read_text_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """From a folder or hub id."""
    quiet_transformers()
    folder = hub.folder(source, expected="the folder of a tokenizer", revision=revision, patterns=TOKENIZER_FILES)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise HybridTokenizerError(
            f"no tokenizer can be read from {source} ({first_line(error)}); give a folder with tokenizer.json"
        ) from None
    return tokenizer


def build_model(
    config: LanguageModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: HybridVocabulary,
    codebooks: Codebooks | None,
    generator: torch.Generator,
) -> nn.Module:
    """The model to train, with rows for the image tokens. A new one's weights are drawn from torch's global state.

    Args:
        codebooks: vectors for `row_start="codebooks"`; not read otherwise.
    """
    model = new_llama(config, tokenizer, vocabulary, generator) if config.base is None else read_model(config)
    wanted = codebooks if config.row_start == "codebooks" else None
    if config.row_start == "codebooks" and codebooks is None:
        raise HybridTokenizerError(
            'lm.row_start="codebooks" needs the image tokenizer; give model_name, or "statistics"'
        )
    if getattr(model.config, "hybrid_vocabulary", None) is None:
        resize_embeddings(model, vocabulary, generator, wanted)
    check_model(model, vocabulary)  # of a base that was trained on image tokens before
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model if config.lora_rank is None else add_lora(model, config, vocabulary)


def new_llama(
    config: LanguageModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: HybridVocabulary,
    generator: torch.Generator,
) -> PreTrainedModel:
    """Random weights, tied embeddings, rows for the text alone."""
    begin, end = document_boundaries(tokenizer)
    sizes = {
        "vocab_size": padded_rows(vocabulary.text_vocab_size), "hidden_size": config.width,
        "intermediate_size": config.mlp_width, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "max_position_embeddings": config.max_length, "tie_word_embeddings": True,
        "initializer_range": USUAL_RANGE * (USUAL_WIDTH / config.width) ** 0.5,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": begin[0] if begin else None, "eos_token_id": end,
    }  # fmt: skip
    if config.embedding_width is None:
        return LlamaForCausalLM(LlamaConfig(**sizes))
    places = {
        "num_places": num_places(vocabulary),
        "image_begin_id": vocabulary.begin_id,
        "image_end_id": vocabulary.end_id,
    }
    model = FactorisedLlamaForCausalLM(FactorisedLlamaConfig(**sizes, **places, embedding_width=config.embedding_width))
    # tokens and places enter the first block at about the same size, and at first all ids are equally likely
    with torch.no_grad():
        nn.init.normal_(model.model.embed_tokens.weight, std=config.embedding_width**-0.5)
        nn.init.normal_(model.widen.weight)
        nn.init.normal_(model.narrow.weight, std=0.1 * config.width**-0.5)
        model.places.weight.copy_(place_vectors(vocabulary, config.width, generator))
    return model


def read_model(config: LanguageModelConfig) -> PreTrainedModel:
    """`config.base` from a folder or the hub; weights are read from safetensors only."""
    quiet_transformers()
    folder = hub.folder(
        config.base, expected="the folder of a causal language model", revision=config.revision, patterns=MODEL_FILES
    )
    return load_causal_model(folder, getattr(torch, config.dtype))


def load_causal_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A causal model of transformers from a folder."""
    try:
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
    except UNREADABLE as error:
        raise HybridTokenizerError(
            f"no causal language model can be read from {folder} ({first_line(error)}); give a folder with config.json and "
            "safetensors"
        ) from None


def add_lora(model: PreTrainedModel, config: LanguageModelConfig, vocabulary: HybridVocabulary) -> nn.Module:
    """Adapters on every linear layer of the body, and trainable rows for the image tokens alone."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise absent("peft", "language") from None
    rows = list(range(vocabulary.begin_id, vocabulary.size))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = {embedding} if head is None or head.weight is embedding.weight else {embedding, head}  # peft follows a tie
    names = [name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module in layers]
    adapters = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules="all-linear",
        trainable_token_indices=dict.fromkeys(names, rows),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapters)


def language_model_names() -> list[str]:
    """The language models whose weights are in the package."""
    return sorted(path.parent.name for path in PRESETS.glob(f"*/{VOCABULARY_NAME}"))


def language_model_folder(source: str, revision: str | None = None) -> Path:
    """The folder of a preset's name, a folder or a hub id."""
    names = language_model_names()
    if source in names:
        return PRESETS / source
    if not Path(source).is_dir() and not hub.is_hub_id(source):
        raise HybridTokenizerError(
            f"{source} is no language model of this package (it has {', '.join(names) or 'none'}) and no folder; give a "
            "folder that train-lm wrote, or a hub id like owner/name"
        )
    return hub.folder(source, expected="a folder that train-lm wrote", revision=revision, patterns=MODEL_FILES)


def load_language_model(
    source: str, image_tokenizer: TokenSource | None = None, revision: str | None = None
) -> LanguageModel:
    """What train-lm wrote: a preset's name, a folder or a hub id.

    Args:
        image_tokenizer: the one in use; a model of another's tokens is refused.
    """
    quiet_transformers()
    folder = language_model_folder(source, revision)
    tokenizer, vocabulary = load_vocabulary(folder, image_tokenizer)
    model = load_causal_model(folder, torch.float32)
    check_model(model, vocabulary)
    return LanguageModel(model.eval(), tokenizer, vocabulary)


def merged(model: nn.Module) -> PreTrainedModel:
    """The model without adapters: a copy in which they are added to the weights, or the model itself where it has none."""
    if isinstance(model, PreTrainedModel):
        return model
    return copy.deepcopy(model).merge_and_unload()
