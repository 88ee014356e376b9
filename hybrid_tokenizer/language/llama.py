"""Llama with factorised embeddings (Lan et al. 2020, ALBERT): rows of the vocabulary are narrow, and one matrix widens them.

Hybrid tokens need tens of thousands of rows. At the width of a small model they would be larger than the model itself.
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Cache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast


class FactorisedLlamaConfig(LlamaConfig):
    """A LlamaConfig and the width of the vocabulary's rows."""

    model_type = "factorised_llama"

    def __init__(self, embedding_width: int = 128, **kwargs: Any) -> None:
        self.embedding_width = embedding_width
        super().__init__(**kwargs)


class FactorisedLlamaForCausalLM(LlamaForCausalLM):
    """LlamaForCausalLM whose input and output rows are `embedding_width` wide."""

    config_class = FactorisedLlamaConfig

    def __init__(self, config: FactorisedLlamaConfig):
        super().__init__(config)
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_width, config.pad_token_id)
        self.widen = nn.Linear(config.embedding_width, config.hidden_size, bias=False)
        self.narrow = nn.Linear(config.hidden_size, config.embedding_width, bias=False)
        self.lm_head = nn.Linear(config.embedding_width, config.vocab_size, bias=False)
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
        """As LlamaForCausalLM's, without its loss. `inputs_embeds` are as wide as the model."""
        if inputs_embeds is None:
            inputs_embeds = self.widen(self.model.embed_tokens(input_ids))
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


AutoConfig.register(FactorisedLlamaConfig.model_type, FactorisedLlamaConfig)
AutoModelForCausalLM.register(FactorisedLlamaConfig, FactorisedLlamaForCausalLM)
