"""A small Llama for hybrid tokens: narrow rows of the vocabulary, and a vector for each place in an image.

Hybrid tokens need tens of thousands of rows. At the width of a small model they would be larger than the model itself, so
one matrix widens them (Lan et al. 2020, ALBERT).

The rotary positions of Llama tell distances only, and a caption of any length may stand before an image. Which cells of a
grid lie beside and above a token depends on its place in the image, so each place has a learned vector that is added to the
token's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, Cache, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

LOSS_CHUNK = 256
"""Positions whose logits are in memory at once. 256 of 24,640 fp32 logits are 25 MB."""


class FactorisedLlamaConfig(LlamaConfig):
    """A LlamaConfig, the width of the vocabulary's rows, and where images begin and end."""

    model_type = "factorised_llama"

    def __init__(
        self,
        embedding_width: int = 128,
        num_places: int = 0,
        image_begin_id: int | None = None,
        image_end_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.embedding_width = embedding_width
        self.num_places = num_places
        self.image_begin_id, self.image_end_id = image_begin_id, image_end_id
        super().__init__(**kwargs)


class FactorisedLlamaForCausalLM(LlamaForCausalLM):
    """LlamaForCausalLM whose input and output rows are `embedding_width` wide, with `num_places` vectors of places (0: none)."""

    config_class = FactorisedLlamaConfig

    def __init__(self, config: FactorisedLlamaConfig):
        super().__init__(config)
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_width, config.pad_token_id)
        self.widen = nn.Linear(config.embedding_width, config.hidden_size, bias=False)
        self.narrow = nn.Linear(config.hidden_size, config.embedding_width, bias=False)
        self.lm_head = nn.Linear(config.embedding_width, config.vocab_size, bias=False)
        self.places = nn.Embedding(config.num_places, config.hidden_size) if config.num_places else None
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "b n"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "_ n"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "b n d"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Int[Tensor, "k"] = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As LlamaForCausalLM's, without its loss. `inputs_embeds` are as wide as the model, and places are not added."""
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if inputs_embeds is None:
            inputs_embeds = self._embedded(input_ids, past_key_values)
        outputs = self.model(
            attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs,
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.narrow(outputs.last_hidden_state[:, kept]))
        return CausalLMOutputWithPast(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def token_losses(
        self, input_ids: Int[Tensor, "b n"], position_ids: Int[Tensor, "b n"], targets: Int[Tensor, "b n"], nothing: int
    ) -> Float[Tensor, "t"]:
        """Cross-entropy in nats over the whole vocabulary, of each target that is not `nothing`.

        The logits of a few positions are in memory at once and are computed again in the backward pass. All of them
        together are larger than everything else in a step, and moving them takes longer than computing them.
        """
        outputs = self.model(inputs_embeds=self._embedded(input_ids, None), position_ids=position_ids, use_cache=False)
        has_target = targets != nothing
        hidden = self.narrow(outputs.last_hidden_state[has_target])
        parts = zip(hidden.split(LOSS_CHUNK), targets[has_target].split(LOSS_CHUNK), strict=True)
        # the logits depend on no random draw
        losses = [checkpoint(self._losses, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(losses)

    def _losses(self, hidden: Float[Tensor, "t e"], targets: Int[Tensor, "t"]) -> Float[Tensor, "t"]:
        return F.cross_entropy(self.lm_head(hidden).float(), targets, reduction="none")

    def _embedded(self, input_ids: Int[Tensor, "b n"], cache: Cache | None) -> Float[Tensor, "b n d"]:
        embedded = self.widen(self.model.embed_tokens(input_ids))
        if self.places is None:
            return embedded
        ids = input_ids if cache is None else _with_earlier(input_ids, cache, self.config.num_hidden_layers)
        places = places_of(ids, self.config.image_begin_id, self.config.image_end_id)[:, -input_ids.shape[1] :]
        vectors = self.places(places.where(places < self.config.num_places, 0))
        return embedded + vectors.to(embedded.dtype)  # autocast makes the first bf16


def places_of(ids: Int[Tensor, "b n"], begin_id: int, end_id: int) -> Int[Tensor, "b n"]:
    """0 outside of an image, 1 for `<img>`, 2 for the first token after it, and so on until before `</img>`."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    begin, end = (torch.where(ids == one, columns, -1).cummax(1).values for one in (begin_id, end_id))
    return torch.where(begin > end, columns - begin + 1, 0)


def _with_earlier(input_ids: Int[Tensor, "b n"], cache: Cache, layer: int) -> Int[Tensor, "b m"]:
    """The ids of earlier calls and these. They lie in the cache as one more layer, so that whatever beam search and guidance
    do to the rows of a cache is done to them."""
    while len(cache.layers) <= layer:
        cache.layers.append(DynamicLayer())
    ids = input_ids[:, None, :, None]
    return cache.layers[layer].update(ids, ids)[0][:, 0, :, 0]


AutoConfig.register(FactorisedLlamaConfig.model_type, FactorisedLlamaConfig)
AutoModelForCausalLM.register(FactorisedLlamaConfig, FactorisedLlamaForCausalLM)
