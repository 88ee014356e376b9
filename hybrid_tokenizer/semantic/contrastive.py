"""Heads of stage 1, which a tokenizer does not need: the text path through the causal Q-Former, projections and temperature."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.configs import from_json
from hybrid_tokenizer.checkpoints.files import CONFIG_NAME, load_component, read_config, save_component
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.semantic.config import SemanticConfig
from hybrid_tokenizer.semantic.modules import INITIAL_STD, QFormer, additive_mask, causal_mask, init_linear

HEADS_FOLDER = "heads"
"""Subfolder of a tokenizer where stage 1 stores its heads, and where it looks for them when it starts from that tokenizer."""


@dataclass
class ContrastiveConfig:
    """Sizes of the stage-1 heads. Width and layers are those of their Q-Former."""

    width: int = 768
    layers: int = 12
    mlp_width: int = 3072
    vocab_size: int = 30523  # BERT's words and BLIP-2's [DEC]
    max_text_length: int = 512
    feature_width: int = 256
    dropout: float = 0.0
    temperature: float = 0.07  # initial value
    # Guards small batches. With the reference's batch of 4096 the temperature falls far less.
    temperature_floor: float = 0.01

    def __post_init__(self) -> None:
        if not self.temperature > self.temperature_floor > 0:
            raise HybridTokenizerError(
                f"temperature={self.temperature} must lie above temperature_floor={self.temperature_floor} > 0; use 0.07 and 0.01"
            )

    @classmethod
    def matching(
        cls, config: SemanticConfig, vocab_size: int = 30523, max_text_length: int = 512, feature_width: int = 256
    ) -> "ContrastiveConfig":
        """Configuration of heads that match the Q-Former of `config`."""
        return cls(
            width=config.width,
            layers=config.qformer_layers,
            mlp_width=config.qformer_mlp_width,
            vocab_size=vocab_size,
            max_text_length=max_text_length,
            feature_width=feature_width,
            dropout=config.dropout,
        )


class TextFeedForward(nn.Module):
    """Text feed-forward of a Q-Former layer. The feed-forward of the queries is in the Q-Former."""

    def __init__(self, config: ContrastiveConfig):
        super().__init__()
        from transformers import Blip2QFormerConfig
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerIntermediate, Blip2QFormerOutput

        sizes = Blip2QFormerConfig(
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            hidden_dropout_prob=config.dropout,
            layer_norm_eps=1e-12,
        )
        self.intermediate = Blip2QFormerIntermediate(sizes)
        self.output = Blip2QFormerOutput(sizes)

    def forward(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Feed-forward with residual and post-norm."""
        return self.output(self.intermediate(hidden), hidden)


class TextPath(nn.Module):
    """Text path of the Q-Former: its self-attention, shared with the queries, and one text feed-forward per layer."""

    def __init__(self, config: ContrastiveConfig):
        super().__init__()
        self.word_embeds = nn.Embedding(config.vocab_size, config.width)
        self.position_embeds = nn.Embedding(config.max_text_length, config.width)
        self.feed_forwards = nn.ModuleList(TextFeedForward(config) for _ in range(config.layers))
        for embedding in (self.word_embeds, self.position_embeds):
            nn.init.normal_(embedding.weight, std=INITIAL_STD)
        self.apply(init_linear)

    def embed(self, input_ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Word plus position embeddings, before the Q-Former's LayerNorm. Raises for ids or lengths out of range."""
        most_ids, most_length = self.word_embeds.num_embeddings, self.position_embeds.num_embeddings
        if input_ids.shape[1] > most_length:
            raise HybridTokenizerError(
                f"text of {input_ids.shape[1]} tokens, the text path takes {most_length}; truncate the captions"
            )
        if input_ids.min() < 0 or input_ids.max() >= most_ids:
            raise HybridTokenizerError(
                f"text token ids span {input_ids.min()} to {input_ids.max()}, the vocabulary has 0 to {most_ids - 1}; "
                "use the tokenizer that these heads were made for"
            )
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.word_embeds(input_ids) + self.position_embeds(positions)

    def forward(
        self, qformer: QFormer, input_ids: Int[Tensor, "b t"], text_mask: Int[Tensor, "b t"]
    ) -> Float[Tensor, "b t d"]:
        """Encode text alone, with bidirectional attention and no cross-attention. `text_mask` is 1 on words."""
        hidden = qformer.body.dropout(qformer.body.layernorm(self.embed(input_ids)))
        mask = additive_mask(rearrange(text_mask.bool(), "b t -> b 1 t"), hidden.dtype)
        for layer, feed_forward in zip(qformer.body.encoder.layer, self.feed_forwards, strict=True):
            hidden = feed_forward(layer.attention(hidden, attention_mask=mask))
        return hidden

    def joint(
        self,
        qformer: QFormer,
        image_embeds: Float[Tensor, "b n e"],
        input_ids: Int[Tensor, "b t"],
        text_mask: Int[Tensor, "b t"],
    ) -> Float[Tensor, "b q_t d"]:
        """Encode queries and text in one sequence (BLIP-2's matching path). Queries come first, and only they attend to the image.

        With a causal Q-Former the queries stay causal among themselves and attend to all words. Words attend to
        everything.
        """
        queries = qformer.query_embeds.expand(len(input_ids), -1, -1)
        num_queries, num_words = queries.shape[1], input_ids.shape[1]
        hidden = torch.cat([queries, self.embed(input_ids)], dim=1)
        hidden = qformer.body.dropout(qformer.body.layernorm(hidden))
        visible = F.pad(text_mask.bool(), (num_queries, 0), value=True)
        allowed = repeat(visible, "b k -> b q k", q=num_queries + num_words).clone()
        if qformer.causal:
            allowed[:, :num_queries, :num_queries] = causal_mask(num_queries, hidden.device)
        mask = additive_mask(allowed, hidden.dtype)
        for layer, feed_forward in zip(qformer.body.encoder.layer, self.feed_forwards, strict=True):
            attended = layer.attention(hidden, attention_mask=mask)
            seen, words = attended[:, :num_queries], attended[:, num_queries:]
            if layer.has_cross_attention:
                seen = layer.crossattention(seen, encoder_hidden_states=image_embeds)
            hidden = torch.cat([layer.feed_forward_chunk_query(seen), feed_forward(words)], dim=1)
        return hidden


def floor_value(value: Float[Tensor, ""], floor: float) -> Float[Tensor, ""]:
    """`value`, but at least `floor`. The gradient passes through the floor, so a parameter below it can rise again."""
    return value + (value.clamp_min(floor) - value).detach()


class ContrastiveHeads(nn.Module):
    """The parameters that only stage 1 has. The Q-Former is an argument of each call, so it is trained but not stored here."""

    def __init__(self, config: ContrastiveConfig):
        super().__init__()
        self.config = config
        self.text = TextPath(config)
        self.vision_projection = nn.Linear(config.width, config.feature_width)
        self.text_projection = nn.Linear(config.width, config.feature_width)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))

    def image_features(self, causal_embeds: Float[Tensor, "b n d"]) -> Float[Tensor, "b f"]:
        """z_i of eq. 6: the last causal embedding, projected and normalised to unit length."""
        return F.normalize(self.vision_projection(causal_embeds[:, -1]), dim=-1)

    def text_features(
        self, qformer: QFormer, input_ids: Int[Tensor, "b t"], text_mask: Int[Tensor, "b t"]
    ) -> Float[Tensor, "b f"]:
        """t_i of eq. 6: the output at [CLS], projected and normalised to unit length."""
        return F.normalize(self.text_projection(self.text(qformer, input_ids, text_mask)[:, 0]), dim=-1)

    def floored_temperature(self) -> Float[Tensor, ""]:
        """The temperature, but at least its floor."""
        return floor_value(self.temperature, self.config.temperature_floor)

    def forward(
        self,
        qformer: QFormer,
        causal_embeds: Float[Tensor, "b n d"],
        input_ids: Int[Tensor, "b t"],
        text_mask: Int[Tensor, "b t"],
    ) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b f"], Float[Tensor, ""]]:
        """Image features, text features and temperature: the arguments of `losses.contrastive_loss`."""
        return (
            self.image_features(causal_embeds),
            self.text_features(qformer, input_ids, text_mask),
            self.floored_temperature(),
        )

    def save_pretrained(self, folder: Path | str) -> None:
        """`config.json` and `model.safetensors`. Write to a folder of its own: `HEADS_FOLDER` inside the tokenizer's."""
        save_component(Path(folder), self.config, self)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "ContrastiveHeads":
        """Read saved heads, to continue stage 1."""
        folder = Path(folder)
        path = folder / CONFIG_NAME
        config = from_json(ContrastiveConfig, read_config(path), str(path), complete=True)
        return load_component(folder, lambda: cls(config)).train()
