"""Branch II: encodes images to 32 causal semantic indices and decodes indices to generation embeddings."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.configs import from_json
from hybrid_tokenizer.checkpoints.files import CONFIG_NAME, load_component, read_config, save_component
from hybrid_tokenizer.devices import codebook_precision, count_parameters, fixed_batch
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import check_computed, check_range, in_fixed_chunks, normalize_clip, resize_bicubic
from hybrid_tokenizer.quantizers import Quantized, build_quantizer
from hybrid_tokenizer.semantic.config import SemanticConfig
from hybrid_tokenizer.semantic.modules import DecoderStack, GenerationHead, QFormer, VisionEncoder, task_layer


class SemanticOutput(NamedTuple):
    """Output of the differentiable pass, the same in training and evaluation."""

    causal_embeds: Float[Tensor, "b n d"]
    quantized: Quantized
    cosine_embeds: Float[Tensor, "b n d"] | None
    """The cosine stack's reconstruction of the causal embeddings (eq. 7); None without that stack."""
    generation_embeds: Float[Tensor, "b m g"]


class SemanticTokenizer(nn.Module):
    """Branch II: SEED's tokenizer. Images are of any size; they are resized to the square `config.image_size` inside.

    Distances to the codebook are computed in fp32 for every module dtype, and under autocast.

    Args:
        config: every size. The weights are random; `from_pretrained` reads trained ones.

    Examples:
        >>> semantic = SemanticTokenizer.from_pretrained("outputs/semantic/final")
        >>> indices = semantic.encode(images)
        >>> semantic.decode(indices).shape
        torch.Size([1, 77, 768])
    """

    def __init__(self, config: SemanticConfig):
        super().__init__()
        self.config = config
        code_dim = config.quantizer.codebook_dim
        self.vision = VisionEncoder(config)
        self.causal_qformer = QFormer(
            config, config.vision_width, config.num_queries, config.qformer_layers, causal=config.causal
        )
        self.encode_task = task_layer(config.width, config.width, code_dim)
        self.quantizer = build_quantizer(config.quantizer)
        self.decode_task = task_layer(code_dim, code_dim, config.width)
        self.cosine = DecoderStack(config) if config.cosine_stack else None
        self.generation = GenerationHead(config)

    def __repr__(self) -> str:
        config = self.config
        return (
            f"SemanticTokenizer({config.variant}: {config.image_size} px to {self.num_queries} tokens of {self.codebook_size} "
            f"codes, to embeddings of {config.num_generation_embeds} x {config.generation_width}; {count_parameters(self)})"
        )

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.config.quantizer.codebook_size

    @property
    def num_queries(self) -> int:
        """Semantic tokens per image."""
        return self.config.num_queries

    def preprocess(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """Map [-1, 1] to the vision encoder's pixels: bicubic resize to a square without a crop, as SEED does, then
        CLIP's normalisation."""
        if not self.training:  # the check makes the host wait for the device, and a training loader's crops pass it
            check_range(images)
        size = (self.config.image_size, self.config.image_size)
        return normalize_clip(resize_bicubic(images.float(), size).clamp(-1, 1))  # PIL's bicubic also clips overshoot

    def image_embeds(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p d"]:
        """Class token and patches after `ln_vision`: the input of the causal Q-Former."""
        return self.vision(self.preprocess(images))

    def causal_embeds(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Outputs of the causal Q-Former. Embedding i depends on the image and on queries 0..i."""
        return self.causal_qformer(self.image_embeds(images).type_as(self.causal_qformer.query_embeds))

    def quantize(self, causal_embeds: Float[Tensor, "b n d"]) -> Quantized:
        """Nearest codes of the task features. `quantized` is fp32 and has a straight-through gradient."""
        return self.quantizer(self.encode_task(causal_embeds))

    def decode_codes(self, quantized: Float[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        """Project codes back to the Q-Former's width, the input of both stacks."""
        return self.decode_task(quantized.to(self.decode_task[0].weight.dtype))

    def reconstruct(self, causal_embeds: Float[Tensor, "b n d"]) -> SemanticOutput:
        """Everything after the Q-Former, differentiable. Stage 2 trains this part, and can feed it cached embeddings."""
        quantized = self.quantize(causal_embeds)
        decoded = self.decode_codes(quantized.quantized)
        cosine_embeds = None if self.cosine is None else self.cosine(decoded)
        return SemanticOutput(causal_embeds, quantized, cosine_embeds, self.generation(decoded))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> SemanticOutput:
        """Encode, quantize and decode with gradients."""
        return self.reconstruct(self.causal_embeds(images))

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b n"]:
        """Encode images to semantic indices. The codebook is not updated. Dropout is off in eval mode only.

        Args:
            images: floats in [-1, 1].

        Returns:
            Codebook positions of shape (b, 32).

        Raises:
            HybridTokenizerError: another value range, or features that are not finite.
        """

        def indices(some: Float[Tensor, "c 3 h w"]) -> tuple[Int[Tensor, "c n"]]:
            features = check_computed(self.encode_task(self.causal_embeds(some)), "semantic")
            return (self.quantizer.lookup(features)[1],)

        fixed = fixed_batch(images.device)
        with codebook_precision():
            return (indices(images) if fixed is None else in_fixed_chunks(indices, images, fixed))[0]

    @torch.no_grad()
    def decode(self, semantic_indices: Int[Tensor, "b n"]) -> Float[Tensor, "b m g"]:
        """Decode semantic indices to generation embeddings, the condition of the U-Net.

        Args:
            semantic_indices: codebook positions of shape (b, 32).

        Returns:
            Floats of shape (b, 77, width) for SEED v1, (b, 1, width) for SEED-2.

        Raises:
            HybridTokenizerError: another number of indices, or positions outside the codebook.
        """
        if semantic_indices.shape[1] != self.num_queries:
            raise HybridTokenizerError(
                f"{semantic_indices.shape[1]} semantic indices per image, this tokenizer has {self.num_queries}; "
                "pass the indices that its encode returned"
            )
        low, high = semantic_indices.aminmax()
        if low < 0 or high >= self.codebook_size:
            raise HybridTokenizerError(
                f"semantic indices span {low} to {high}, the codebook has 0 to {self.codebook_size - 1}; "
                "subtract the vocabulary's offset, or use the tokenizer that made them"
            )
        return self.embeds_of(semantic_indices)

    def embeds_of(self, semantic_indices: Int[Tensor, "b n"]) -> Float[Tensor, "b m g"]:
        """`decode` of indices that are known to be right. A check would make the host wait for the device."""
        return self.generation(self.decode_codes(self.quantizer.codes(semantic_indices)))

    def with_cosine_stack(self) -> "SemanticTokenizer":
        """The same tokenizer with a cosine stack for training, of random weights where it has none."""
        if self.cosine is not None:
            return self
        whole = copy.deepcopy(self)
        whole.config = replace(self.config, cosine_stack=True)
        whole.cosine = DecoderStack(whole.config).to(next(self.parameters()).device)
        return whole

    def without_cosine_stack(self) -> "SemanticTokenizer":
        """The same tokenizer without the cosine stack, which only training uses. This is the form to publish."""
        bare = copy.deepcopy(self)
        bare.config, bare.cosine = replace(self.config, cosine_stack=False), None
        return bare

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`. Floating-point weights are cast to `dtype` if it is given."""
        save_component(Path(folder), self.config, self, dtype)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "SemanticTokenizer":
        """Read a saved tokenizer, in eval mode and fp32. Raises if a file is missing, damaged, or of another configuration."""
        folder = Path(folder)
        path = folder / CONFIG_NAME
        config = from_json(SemanticConfig, read_config(path), str(path), complete=True)
        return load_component(folder, lambda: cls(config))
