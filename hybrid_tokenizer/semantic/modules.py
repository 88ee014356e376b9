"""The parts of Branch II, built on transformers' BLIP-2 classes: vision encoder, Q-Former, decoder stack, generation head.

transformers is imported only when a part is built, so that importing the configuration is fast.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.semantic.config import SemanticConfig

INITIAL_STD = 0.02


def additive_mask(allowed: Bool[Tensor, "b q k"], dtype: torch.dtype) -> Float[Tensor, "b 1 q k"]:
    """0 where a query may attend, the dtype's minimum where not.

    The mask is floating-point and four-dimensional on purpose. transformers' Q-Former handles a boolean mask correctly
    under SDPA only; under eager attention it adds the mask to the scores without an error.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def causal_mask(num_queries: int, device: torch.device) -> Bool[Tensor, "q q"]:
    """Mask under which query i attends to queries 0..i."""
    return torch.ones(num_queries, num_queries, dtype=torch.bool, device=device).tril()


class VisionEncoder(nn.Module):
    """EVA-CLIP ViT of BLIP-2. The class token is kept, and BLIP-2's `ln_vision` (eps 1e-5) replaces the final norm."""

    def __init__(self, config: SemanticConfig):
        super().__init__()
        from transformers import Blip2VisionConfig, Blip2VisionModel

        self.body = Blip2VisionModel(
            Blip2VisionConfig(
                hidden_size=config.vision_width,
                intermediate_size=config.vision_mlp_width,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=config.vision_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_act="gelu",
                layer_norm_eps=1e-6,
                initializer_range=INITIAL_STD,  # the class default is 1e-10, for models loaded from a checkpoint
            )
        )
        self.body.post_layernorm.eps = 1e-5  # LAVIS's ln_vision; the blocks keep 1e-6

    def raw(self, pixel_values: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b p d"]:
        """Residual stream after the last block; the class token is at position 0."""
        return self.body.encoder(inputs_embeds=self.body.embeddings(pixel_values)).last_hidden_state

    def forward(self, pixel_values: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b p d"]:
        """Map CLIP-normalised pixels to normalised tokens, in the dtype of the norm (fp32 if only the blocks are cast)."""
        norm = self.body.post_layernorm
        return norm(self.raw(pixel_values).to(norm.weight.dtype))


class QFormer(nn.Module):
    """Learned queries that cross-attend to features of `encoder_width` in a BERT-like transformer."""

    def __init__(self, config: SemanticConfig, encoder_width: int, num_queries: int, num_layers: int, causal: bool):
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        self.causal = causal
        self.query_embeds = nn.Parameter(torch.empty(1, num_queries, config.width).normal_(0, INITIAL_STD))
        self.body = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=config.width,
                num_hidden_layers=num_layers,
                num_attention_heads=config.qformer_heads,
                intermediate_size=config.qformer_mlp_width,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                initializer_range=INITIAL_STD,
                layer_norm_eps=1e-12,
                cross_attention_frequency=config.cross_attention_every,
                encoder_hidden_size=encoder_width,
            )
        )

    def forward(
        self,
        features: Float[Tensor, "b n e"],
        features_mask: Int[Tensor, "b n"] | None = None,
        query_embeds: Float[Tensor, "1 q d"] | Float[Tensor, "b q d"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Query outputs. `features_mask` is 1 where a feature may be attended to. `query_embeds` replaces the learned queries."""
        queries = self.query_embeds if query_embeds is None else query_embeds
        queries = queries.expand(features.shape[0], -1, -1)
        mask = None
        if self.causal:
            allowed = repeat(causal_mask(queries.shape[1], queries.device), "q k -> b q k", b=len(queries))
            mask = additive_mask(allowed, queries.dtype)
        source_mask = None
        if features_mask is not None:
            source_mask = additive_mask(rearrange(features_mask.bool(), "b n -> b 1 n"), queries.dtype)
        return self.body(
            query_embeds=queries,
            attention_mask=mask,
            encoder_hidden_states=features,
            encoder_attention_mask=source_mask,
        ).last_hidden_state


class DecoderStack(nn.Module):
    """Learned positions and pre-norm bidirectional blocks (LayerNorm eps 1e-6, no final norm)."""

    def __init__(self, config: SemanticConfig):
        super().__init__()
        from transformers import Blip2VisionConfig
        from transformers.models.blip_2.modeling_blip_2 import Blip2Encoder

        self.position_embeds = nn.Parameter(torch.zeros(1, config.num_queries, config.width))
        # BLIP-2's vision block has this structure; its configuration class only carries the sizes
        self.body = Blip2Encoder(
            Blip2VisionConfig(
                hidden_size=config.width,
                intermediate_size=config.decoder_mlp_width,
                num_hidden_layers=config.decoder_layers,
                num_attention_heads=config.decoder_heads,
                hidden_act="gelu",
                layer_norm_eps=1e-6,
                attn_implementation="sdpa",
            )
        )
        self.apply(init_linear)

    def forward(self, decoded: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Map decoded codes to embeddings of the same shape."""
        return self.body(inputs_embeds=decoded + self.position_embeds).last_hidden_state


class GenerationHead(nn.Module):
    """Maps decoded codes to generation embeddings: decoder stack, then a reverse Q-Former or an MLP, then a projection."""

    def __init__(self, config: SemanticConfig):
        super().__init__()
        self.stack = DecoderStack(config)
        if config.variant == "seed2_mlp":
            widths = [config.width, *config.mlp_widths]
            layers: list[nn.Module] = []
            for narrow, wide in zip(widths[1:], widths[:-1], strict=True):
                layers += [nn.Linear(wide, narrow, bias=False), nn.ReLU()]
            self.down = nn.Sequential(*layers[:-1], nn.Flatten())
            self.projection = nn.Linear(config.num_queries * widths[-1], config.generation_width)
        else:
            self.reverse = QFormer(
                config, config.width, config.num_generation_embeds, config.reverse_layers, causal=False
            )
            self.projection = nn.Linear(config.width, config.generation_width)

    def forward(self, decoded: Float[Tensor, "b n d"]) -> Float[Tensor, "b m g"]:
        """Generation embeddings; m is 77 for SEED v1 and 1 for SEED-2."""
        hidden = self.stack(decoded)
        if hasattr(self, "down"):
            return self.projection(self.down(hidden))[:, None]
        return self.projection(self.reverse(hidden))


def task_layer(width_in: int, width_hidden: int, width_out: int) -> nn.Sequential:
    """Linear, Tanh, Linear: the layers before and after the codebook."""
    return nn.Sequential(nn.Linear(width_in, width_hidden), nn.Tanh(), nn.Linear(width_hidden, width_out))


def init_linear(module: nn.Module) -> None:
    """BERT's initialisation, for parts that transformers does not initialise."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
