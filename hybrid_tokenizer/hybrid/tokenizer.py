"""HybridTokenizer: an image to 32 semantic tokens and a guide grid, and back through diffusion."""

import functools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.checkpoints.files import write_atomic
from hybrid_tokenizer.diffusion import DecodeOverrides, DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError, check_size, check_whole
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.guide.search import GuideLosses
from hybrid_tokenizer.hybrid.branches import Branches, as_dtype
from hybrid_tokenizer.hybrid.folders import CARD_NAME, plain_card, read_tokenizer, write_tokenizer
from hybrid_tokenizer.hybrid.noise import as_generator, image_generators
from hybrid_tokenizer.hybrid.pictures import (
    Output,
    OutputType,
    Pictures,
    Resize,
    check_output_type,
    to_batch,
    to_output,
)
from hybrid_tokenizer.hybrid.search import decoded_losses
from hybrid_tokenizer.images import check_computed, resize_bicubic
from hybrid_tokenizer.perceptual import EfficientNetDistance
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.tokens import HybridTokens, HybridVocabulary, TokenSource, check_source

MOST_SEARCH_STEPS = 10_000


class HybridTokenizer(Branches):
    """Images to 32 semantic tokens and a guide grid each, and tokens to images.

    A torch module of three branches, `guide`, `semantic` and `diffusion`, in evaluation mode. Images and tokens are moved to
    its device. Tokens do not depend on the batch: on a GPU every call of an encoder takes the same number of images. Nor does the
    noise of an image, which is a function of the generator's state and of the image's own tokens.

    Args:
        guide: Branch I.
        semantic: Branch II. A cosine stack, which only training reads, is left out.
        diffusion: Branch III.
        name: what tokens call this tokenizer.
        search_steps: default of `encode`.

    Raises:
        HybridTokenizerError: `search_steps` is no whole number.

    Examples:
        >>> tokenizer = HybridTokenizer.from_pretrained("tiny")
        >>> tokens = tokenizer.encode("cat.jpg")
        >>> tokenizer.decode(tokens, output_type="pil")[0].save("decoded.png")
    """

    def __init__(
        self,
        guide: GuideTokenizer,
        semantic: SemanticTokenizer,
        diffusion: DiffusionDecoder,
        name: str = "hybrid",
        search_steps: int = 0,
    ):
        super().__init__(guide, semantic, diffusion)
        self.name = name
        self.search_steps = check_search_steps(search_steps)
        self.card: str | None = None
        self.render_size: int | None = None
        """The shorter side, in pixels, at which diffusion draws; its images are then resized. None draws at the size asked for."""

    def __repr__(self) -> str:
        tokens = sum(height * width for height, width in self.guide.guide_scale_sizes((self.native_size,) * 2))
        dtype = str(next(self.diffusion.unet.parameters()).dtype).removeprefix("torch.")
        return (
            f"HybridTokenizer({self.name!r}, {self.native_size} px to {self.semantic.num_queries} semantic + {tokens} guide "
            f"tokens, {dtype} on {self.device})"
        )

    @property
    def native_size(self) -> int:
        """The side in pixels that the guide was trained for."""
        return self.guide.config.image_size

    @property
    def deterministic(self) -> bool:
        """Whether `decode` with its default options draws no noise."""
        return self.diffusion.config.decode_defaults.deterministic

    @property
    def source(self) -> TokenSource:
        """What `encode` writes on its tokens."""
        return TokenSource(self.name, self.hash)

    @torch.no_grad()
    def encode(
        self,
        images: Pictures,
        generator: torch.Generator | None = None,
        guide_scales: int | None = None,
        search_steps: int | None = None,
        *,
        resize: Resize = "auto",
    ) -> HybridTokens:
        """Images to tokens. Encoding is deterministic.

        Args:
            images: a path, a PIL image, a uint8 array or tensor (h w 3 or 3 h w), floats in [-1, 1] (b 3 h w), or a list of
                these.
            guide_scales: keep only the first grids of a nested guide; None keeps all.
            search_steps: gradient steps of a search for guide codes that decode to a closer image. 0 is the paper's encoder,
                one pass. None takes the tokenizer's own number, 0 unless it was set.
            generator: not read; every tokenizer's `encode` has it.
            resize: "crop" brings the shorter side to `native_size` and cuts the centre square; "pad" brings the longer side
                there and fills the square with black. Both resize 8-bit pictures with antialiased bicubic, and leave a square
                of that size as it is. None takes images as they are, with sides that are multiples of the guide's downsample
                factor. "auto" is "crop" for paths and PIL images, None for arrays and tensors.

        Returns:
            The tokens of all images as one batch, on the tokenizer's device.

        Raises:
            HybridTokenizerError: an image that cannot be read, of another layout, value range or size; a number out of range.

        Warns:
            UserWarning: floats without a value below 0, which may be in [0, 1].

        Examples:
            >>> tokenizer.encode(["cat.jpg", "dog.jpg"])
            HybridTokens(2 images of 256x256: 32 semantic + 4 + 16 + 64 + 256 guide tokens, made by 'tiny' (0123456789ab))
        """
        batch = to_batch(images, self.native_size, resize, self.device)
        size = (batch.shape[-2], batch.shape[-1])
        self.check_size(*size)
        semantic_indices = self.semantic.encode(batch)
        guide_indices = self.encode_guide(batch, semantic_indices, guide_scales, search_steps)
        return HybridTokens(semantic_indices, guide_indices, size, self.source)

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode_guide(
        self,
        images: Float[Tensor, "b 3 h w"],
        semantic_indices: Int[Tensor, "b 32"] | None,
        guide_scales: int | None = None,
        search_steps: int | None = None,
    ) -> tuple[Int[Tensor, "b _ _"], ...]:
        """The guide's part of `encode`, for images on the branches' device.

        The search decodes under the given semantic indices, or under the null condition where they are None.
        """
        steps = check_search_steps(self.search_steps if search_steps is None else search_steps)
        if guide_scales is not None:
            check_whole(
                "guide_scales", guide_scales, 1, len(self.guide.config.guide_scales or [0]), ", the grids of this guide"
            )
        if not steps:
            return self.guide.encode(images, guide_scales=guide_scales)
        defaults = self.diffusion.config.decode_defaults
        if not defaults.deterministic:
            raise HybridTokenizerError(
                f"search_steps={steps} needs a decoder that draws no noise, but its defaults are start={defaults.start!r} and "
                f"eta={defaults.eta}; use search_steps=0, or a decoder whose defaults are start='ddim_inversion' and eta=0"
            )

        def losses_for(rows: slice) -> GuideLosses:
            embeds = None if semantic_indices is None else self.semantic.decode(semantic_indices[rows])
            return decoded_losses(self.diffusion, self._distance.to(images.device), images[rows], embeds)

        return self.guide.search(images, losses_for, steps, guide_scales)

    @functools.cached_property
    def _distance(self) -> EfficientNetDistance:
        return EfficientNetDistance("lite0")

    def decode(
        self,
        tokens: HybridTokens | Int[Tensor, "*b n"] | Int[np.ndarray, "*b n"] | Sequence[Any],
        size: int | tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
        *,
        vocabulary: HybridVocabulary | None = None,
        seed: int | None = None,
        semantic_embeds: Float[Tensor, "_ n d"] | None = None,
        output_type: OutputType = "pt",
        progress: bool = False,
        **options: Unpack[DecodeOverrides],
    ) -> Output:
        """Tokens to images.

        Args:
            tokens: what `encode` returned, or ids of a language model (b n) with their `vocabulary`.
            size: (height, width) of the images, multiples of 8, or one number for both. None is the size of the images that
                were encoded.
            generator: of the noise, where the options draw any.
            vocabulary: what `HybridTokenizer.vocabulary` returned, for ids.
            seed: stands for a generator with that seed. With neither, the noise is the same in every call.
            semantic_embeds: generation embeddings (b 77 d for SEED v1) in place of those of the semantic indices, such as a
                mixture of two images' `semantic_embeds`.
            output_type: "pt" is floats in [-1, 1], b 3 h w. "pil" is a list of PIL images. "np" is a uint8 array, b h w 3.
            progress: show a bar.
            **options: replace the decoder's defaults for this call; see `DecodeOptions`.

        Returns:
            The images, of the kind that `output_type` names.

        Raises:
            HybridTokenizerError: tokens of another tokenizer, an option out of its range, or weights that decode to pixels
                that are not finite.

        Examples:
            >>> tokenizer.decode(tokens, size=512, seed=1, strength=0.4, output_type="pil")[0].show()
        """
        check_output_type(output_type)
        tokens = self._read_tokens(tokens, vocabulary)
        self.check_tokens(tokens)
        images = self.decode_indices(
            tokens.semantic_indices,
            tokens.guide_indices,
            tokens.image_size,
            as_size(size),
            as_generator(generator, seed),
            semantic_embeds=semantic_embeds,
            progress=progress,
            **options,
        )
        return to_output(images, output_type)

    def _read_tokens(self, tokens: Any, vocabulary: HybridVocabulary | None) -> HybridTokens:
        if isinstance(tokens, HybridTokens):
            if vocabulary is not None:
                raise HybridTokenizerError("vocabulary is for ids, and these are HybridTokens already; leave it out")
            return tokens
        if vocabulary is None:
            raise HybridTokenizerError(
                f"tokens is a {type(tokens).__name__}, expected HybridTokens; for ids of a language model give the vocabulary "
                "that made them: decode(ids, vocabulary=...)"
            )
        return vocabulary.from_token_ids(tokens)

    @torch.no_grad()
    def decode_indices(
        self,
        semantic_indices: Int[Tensor, "b 32"] | None,
        guide_indices: tuple[Int[Tensor, "b _ _"], ...] | None,
        image_size: tuple[int, int],
        size: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
        *,
        semantic_embeds: Float[Tensor, "_ n d"] | None = None,
        progress: bool = False,
        **options: Unpack[DecodeOverrides],
    ) -> Float[Tensor, "b 3 H W"]:
        """`decode` from either kind of index alone, for controls and ablations.

        Without semantic indices the condition is the null condition. Without guide indices the decode starts from pure
        noise and takes all steps. The noise is a function of the indices that are given.
        """
        read = ([] if semantic_indices is None else [semantic_indices]) + list(guide_indices or ())
        if read and not len(read[0]):
            return torch.zeros(0, 3, *(size or image_size), device=self.device)
        generators = image_generators(read, generator)
        if semantic_embeds is None and semantic_indices is not None:
            semantic_embeds = self.embed(semantic_indices)
        guide = None if guide_indices is None else self.decode_guide(guide_indices, image_size)
        return self.render(guide, semantic_embeds, size or image_size, generators, progress=progress, **options)

    def render(
        self,
        guide_images: Float[Tensor, "b 3 gh gw"] | None,
        semantic_embeds: Float[Tensor, "_ n d"] | None,
        size: tuple[int, int],
        generators: list[torch.Generator],
        *,
        progress: bool = False,
        **options: Unpack[DecodeOverrides],
    ) -> Float[Tensor, "b 3 H W"]:
        """Diffusion from guide images and embeddings, at `render_size`, then bicubic to `size`."""
        drawn = size
        if self.render_size is not None:
            factor = self.diffusion.config.vae_factor
            drawn = tuple(max(1, round(side * self.render_size / min(size) / factor)) * factor for side in size)
        images = self.diffusion.decode(
            guide_images, semantic_embeds, drawn, generator=generators, progress=progress, **options
        )
        images = check_computed(images, "diffusion")
        return images if drawn == tuple(size) else resize_bicubic(images, size).clamp(-1, 1)

    def semantic_embeds(self, tokens: HybridTokens) -> Float[Tensor, "b n d"]:
        """The generation embeddings of tokens: what the decoder reads of their semantic indices.

        Args:
            tokens: of this tokenizer.

        Returns:
            Floats of shape (b, 77, d) for SEED v1, with d the width that the U-Net reads.

        Raises:
            HybridTokenizerError: tokens of another tokenizer, or weights that compute values that are not finite.

        Examples:
            >>> cat, dog = tokenizer.encode("cat.jpg"), tokenizer.encode("dog.jpg")
            >>> middle = tokenizer.semantic_embeds(cat).lerp(tokenizer.semantic_embeds(dog), 0.5)
            >>> tokenizer.decode(cat, semantic_embeds=middle)
        """
        self.check_tokens(tokens)
        return self.embed(tokens.semantic_indices)

    @torch.no_grad()
    def embed(self, semantic_indices: Int[Tensor, "b 32"]) -> Float[Tensor, "b n d"]:
        """The generation embeddings of semantic indices."""
        return check_computed(self.semantic.decode(semantic_indices.to(self.device)), "semantic")

    @torch.no_grad()
    def decode_guide(
        self, guide_indices: tuple[Int[Tensor, "b _ _"], ...], image_size: tuple[int, int]
    ) -> Float[Tensor, "b 3 h w"]:
        """The guide images alone, at the guide's own size for images of `image_size`, clamped to [-1, 1]."""
        grids = tuple(grid.to(self.device) for grid in guide_indices)
        # A prefix of a nested guide does not always determine the full grid; the image size does.
        grid_size = self.guide.config.grid_size(check_size("image_size", image_size))
        guide_images = self.guide.decode(grids, grid_size=grid_size)
        return check_computed(guide_images, "guide").float().clamp(-1, 1)

    def reconstruct(
        self,
        images: Pictures,
        generator: torch.Generator | None = None,
        *,
        size: int | tuple[int, int] | None = None,
        guide_scales: int | None = None,
        resize: Resize = "auto",
        **options: Any,
    ) -> Output:
        """`decode(encode(images))`.

        Args:
            images: see `encode`.
            generator: see `decode`.
            size: see `decode`.
            guide_scales: see `encode`.
            resize: see `encode`.
            **options: further options of `decode`.

        Returns:
            What `decode` returns.

        Raises:
            HybridTokenizerError: as `encode` and `decode` do.

        Examples:
            >>> tokenizer.reconstruct("cat.jpg", output_type="pil")[0].save("decoded.png")
        """
        return self.decode(self.encode(images, guide_scales=guide_scales, resize=resize), size, generator, **options)

    def forward(self, images: Pictures, generator: torch.Generator | None = None) -> Output:
        """`reconstruct` with its default options."""
        return self.reconstruct(images, generator)

    def mix(self, *, semantic_of: HybridTokens, guide_of: HybridTokens) -> HybridTokens:
        """The semantic tokens of one batch with the guide of another.

        Args:
            semantic_of: gives the semantic indices.
            guide_of: gives the guide indices and the image size.

        Returns:
            As many images as each of the two has.

        Raises:
            HybridTokenizerError: batches of different lengths, or tokens of another tokenizer.

        Examples:
            >>> tokenizer.decode(tokenizer.mix(semantic_of=cats, guide_of=dogs))
        """
        return HybridTokens.mix(semantic_of=self.adopt(semantic_of), guide_of=self.adopt(guide_of))

    def adopt(self, tokens: HybridTokens) -> HybridTokens:
        """The same tokens under today's hash of this tokenizer, after `check_tokens`.

        Tokens from files of version 1 hold a hash that only their tokenizer can check. Decoding takes them as they are, and
        so does everything else once they are adopted.

        Raises:
            HybridTokenizerError: tokens of another tokenizer.

        Examples:
            >>> tokenizer.adopt(HybridTokens.load("old.safetensors")).save("new.safetensors")
        """
        self.check_tokens(tokens)
        return HybridTokens(tokens.semantic_indices, tokens.guide_indices, tokens.image_size, self.source)

    def num_tokens(self, tokens: HybridTokens) -> Int[Tensor, "b"]:
        """Tokens per image: the semantic ones and the guide's."""
        return torch.full((len(tokens),), tokens.num_tokens)

    def bits(self, tokens: HybridTokens) -> Float[Tensor, "b"]:
        """Bits per image."""
        bits = tokens.bits(self.semantic.codebook_size, self.guide.codebook_size)
        return torch.full((len(tokens),), bits)

    def vocabulary(self, text_vocab_size: int = 0, image_size: tuple[int, int] | None = None) -> HybridVocabulary:
        """The ids of this tokenizer's codes in the vocabulary of a language model.

        Args:
            text_vocab_size: how many text ids come first.
            image_size: (height, width) of the images; None is a square of `native_size`.

        Returns:
            The offsets of all codes, and how long the sequence of an image is.

        Raises:
            HybridTokenizerError: a number out of its range, or sides that are no multiples of the downsample factor.

        Examples:
            >>> ids = tokens.to_token_ids(tokenizer.vocabulary(text_vocab_size=32000))
        """
        image_size = (
            (self.native_size, self.native_size) if image_size is None else check_size("image_size", image_size)
        )
        self.check_size(*image_size)
        return HybridVocabulary(
            semantic_codebook_size=self.semantic.codebook_size,
            guide_codebook_size=self.guide.codebook_size,
            grid_shapes=tuple(self.guide.guide_scale_sizes(image_size)),
            image_size=image_size,
            text_vocab_size=text_vocab_size,
            source=self.source,
        )

    def check_size(self, height: int, width: int) -> None:
        """Raise when the sides are not multiples of the guide's downsample factor, naming the nearest that are."""
        factor = self.guide.downsample_factor
        if height % factor or width % factor or not height or not width:
            nearest = " or ".join(
                f"{h}x{w}" for h, w in dict.fromkeys(zip(_around(height, factor), _around(width, factor), strict=True))
            )
            raise HybridTokenizerError(
                f"images are {height}x{width} (height x width), expected sides that are multiples of {factor}; "
                f"resize to {nearest}, or pass resize='crop' for squares of {self.native_size} px"
            )

    def check_tokens(self, tokens: HybridTokens) -> None:
        """Raise when another tokenizer made `tokens`, or when their grids are not those of their image size."""
        check_source(tokens.source, self.source, lambda: self.first_hash)
        self.check_size(*tokens.image_size)
        expected = tuple(self.guide.guide_scale_sizes(tokens.image_size))
        if tokens.grid_shapes != expected[: len(tokens.grid_shapes)]:
            raise HybridTokenizerError(
                f"tokens have guide grids {tokens.grid_shapes}, {self.name!r} makes {expected} of {tokens.image_size} "
                "images; use the tokenizer and image_size that made them"
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        *,
        subfolder: str | None = None,
        token: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        guide: str | Path | None = None,
        semantic: str | Path | None = None,
        diffusion: str | Path | None = None,
        search_steps: int | None = None,
    ) -> "HybridTokenizer":
        """From a preset's name, a folder that `save_pretrained` wrote, or a hub id `owner/name`.

        Args:
            source: `hybrid_tokenizer.list_presets()` are the presets. With all three branches given it is the name alone.
            revision: branch, tag or commit of a hub repository.
            subfolder: where the tokenizer is inside the folder or the repository.
            token: for private or gated repositories of the hub.
            device: moved there, as by `to`.
            dtype: cast to it, as by `to`. Weights are read in fp32.
            guide: a folder to take this branch from, such as the `final/` folder of a training run.
            semantic: the same for Branch II.
            diffusion: the same for Branch III.
            search_steps: replaces the stored number.

        Returns:
            The tokenizer. Its `card` is the model card beside it, with the licence of the weights, where there is one.

        Raises:
            HybridTokenizerError: nothing is there, a file is damaged, or the branches do not fit together.

        Examples:
            >>> HybridTokenizer.from_pretrained("tiny", device="cuda", dtype=torch.bfloat16)
        """
        replacements = {"guide": guide, "semantic": semantic, "diffusion": diffusion}
        stored = read_tokenizer(source, replacements, subfolder=subfolder, revision=revision, token=token)
        steps = stored.search_steps if search_steps is None else search_steps
        tokenizer = cls(**stored.parts, name=stored.name, search_steps=steps)
        tokenizer.card = stored.card
        return tokenizer.to(device, dtype)

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | str | None = None, max_shard_size: int | str = "10GB"
    ) -> None:
        """To a folder in diffusers' layout.

        The tokenizer is written beside the folder and renamed, so the folder never holds half of one. An older tokenizer is
        replaced, and other top-level files (a README) are kept.

        Args:
            folder: a new or empty one, or one that holds a tokenizer.
            dtype: of the weights in the files; None keeps theirs. fp16 keeps the hash.
            max_shard_size: files of the U-Net and the VAE are split there, for hosts that limit the size of a file.

        Raises:
            HybridTokenizerError: the folder holds something else.

        Examples:
            >>> tokenizer.save_pretrained("my_tokenizer", dtype=torch.float16)
        """
        facts = {"name": self.name, **({"search_steps": self.search_steps} if self.search_steps else {})}
        write_tokenizer(Path(folder), self, facts, None if dtype is None else as_dtype(dtype), max_shard_size)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> None:
        """Upload what `save_pretrained` writes, creating the repository if need be.

        The model card goes along as README.md: it states the licence of the weights. It is the one that the tokenizer was loaded
        with, or `card` where you set it; without either it says that the weights are for research only.

        Args:
            repo_id: `owner/name` on the hub.
            private: whether a new repository is private.
            token: with the right to write; None takes that of `hf auth login`.

        Raises:
            HybridTokenizerError: the hub cannot be reached, or refuses.

        Examples:
            >>> tokenizer.push_to_hub("me/my-tokenizer", private=True)
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "tokenizer"
            self.save_pretrained(folder)
            card = plain_card(self.name, self.native_size) if self.card is None else self.card
            write_atomic(folder / CARD_NAME, card.encode())
            hub.upload(repo_id, folder, private=private, token=token)


def as_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of one number, or of two."""
    if size is None:
        return None
    return check_size("size", size if isinstance(size, (tuple, list)) else (size, size))


def check_search_steps(steps: Any) -> int:
    """Raise for a number of search steps that is none."""
    return check_whole("search_steps", steps, 0, MOST_SEARCH_STEPS, "; 0 does not search")


def _around(side: int, factor: int) -> tuple[int, int]:
    """The multiples of `factor` below and above, at least one."""
    return max(1, side // factor) * factor, max(1, math.ceil(side / factor)) * factor
