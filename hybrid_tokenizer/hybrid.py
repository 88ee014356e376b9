"""HybridTokenizer: an image to 32 semantic tokens and a guide grid, and back through diffusion."""

import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer import __version__
from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.checkpoints.files import read_json, state_hash, write_atomic, write_json
from hybrid_tokenizer.devices import compile_in_place
from hybrid_tokenizer.diffusion import DecodeOverrides, DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.guide.search import GuideLosses
from hybrid_tokenizer.images import check_range, full_resolution_chunk
from hybrid_tokenizer.perceptual import EfficientNetDistance
from hybrid_tokenizer.presets import INDEX_NAME, PRESETS, list_presets
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.tokens import HybridTokens, HybridVocabulary, TokenSource, check_source

PERCEPTUAL_WEIGHT = 0.01
"""In the search's loss, of the feature distance beside the squared error of the decoded image (docs/experiments.md)."""
CARD_NAME = "README.md"
HUB_PATTERNS = ("*.json", "*.safetensors", CARD_NAME)
COMPONENTS: dict[str, type] = {"guide": GuideTokenizer, "semantic": SemanticTokenizer, "diffusion": DiffusionDecoder}
SEED_RANGE = 2**62


class HybridTokenizer:
    """The three branches as one ImageTokenizer.

    The branches are put into evaluation mode. Images are float [-1, 1], b 3 h w, with sides that are multiples of the
    guide's downsample factor. Images and tokens are moved to the branches' device. Results do not depend on the batch: an
    image's noise is a function of the generator's state and of its own tokens.
    """

    def __init__(
        self,
        guide: GuideTokenizer,
        semantic: SemanticTokenizer,
        diffusion: DiffusionDecoder,
        name: str = "hybrid",
        search_steps: int = 0,
    ):
        # Convolutions are fastest in channels_last, on CPU and GPU. Stored files keep their layout.
        self.guide = guide.eval().to(memory_format=torch.channels_last)
        # Only training reads the cosine stack. Without it, hash and stored form are those of the published tokenizer.
        self.semantic = (semantic.without_cosine_stack() if semantic.config.cosine_stack else semantic).eval()
        self.diffusion = diffusion.eval().to(memory_format=torch.channels_last)
        self.name = name
        if isinstance(search_steps, bool) or not isinstance(search_steps, int) or search_steps < 0:
            raise HybridTokenizerError(
                f"search_steps={search_steps!r} must be a whole number of at least 0; 0 does not search"
            )
        self.search_steps = search_steps
        self.card: str | None = None
        self._slice_vae()

    @property
    def native_size(self) -> int | None:
        """The side in pixels that the guide was trained for."""
        return self.guide.config.image_size

    @property
    def deterministic(self) -> bool:
        """Whether `decode` with its default options draws no noise."""
        return self.diffusion.config.decode_defaults.deterministic

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.guide.parameters()).device

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of all weights rounded to fp16, and of the diffusion settings that decide what the U-Net reads.

        It is the same in memory and in files of fp32 or fp16, on any device. It is computed once: build a new
        HybridTokenizer after further training.
        """
        parts = [state_hash(module, torch.float16) for module in self._modules.values()]
        config = self.diffusion.config
        settings = [
            config.latent_shift,
            config.latent_scale,
            *([config.guide_residual] if config.guide_residual else []),
        ]
        numbers = [[float(value) for value in values] for values in settings]
        parts.append(json.dumps([config.prediction_type, *numbers]))  # a float's text is exact, as in config.json
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @property
    def source(self) -> TokenSource:
        """What `encode` writes on its tokens."""
        return TokenSource(self.name, self.hash)

    @torch.no_grad()
    def encode(
        self,
        images: Float[Tensor, "b 3 h w"],
        generator: torch.Generator | None = None,
        guide_scales: int | None = None,
        search_steps: int | None = None,
    ) -> HybridTokens:
        """Images to tokens. Encoding is deterministic; `generator` is there for the protocol.

        guide_scales: keep only the first grids of a nested guide.
        search_steps: gradient steps of a search for guide codes that decode to a closer image. 0 is the paper's encoder,
            one pass. None takes the tokenizer's own number, 0 unless it was set.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise HybridTokenizerError(
                f"images are {images.dtype} of shape {tuple(images.shape)}, expected floats (images, 3, height, width) in "
                "[-1, 1]; convert PIL images with hybrid_tokenizer.images.from_pil and stack them"
            )
        self.check_size(images.shape[-2], images.shape[-1])
        check_range(images)
        images = images.to(self.device, torch.float32)
        semantic_indices = self.semantic.encode(images)
        return HybridTokens(
            semantic_indices=semantic_indices,
            guide_indices=self.encode_guide(images, semantic_indices, guide_scales, search_steps),
            image_size=(images.shape[-2], images.shape[-1]),
            source=self.source,
        )

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
        steps = self.search_steps if search_steps is None else search_steps
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
        tokens: HybridTokens,
        size: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
        *,
        progress: bool = False,
        **options: Unpack[DecodeOverrides],
    ) -> Float[Tensor, "b 3 H W"]:
        """Tokens to images of `size` (default: the size they were encoded at; any multiples of 8).

        `options` override the decoder's defaults for this call (`diffusion.config.DecodeOptions` describes each). Without a
        generator the noise is that of seed 0.
        """
        self.check_tokens(tokens)
        return self.decode_indices(
            tokens.semantic_indices,
            tokens.guide_indices,
            tokens.image_size,
            size,
            generator,
            progress=progress,
            **options,
        )

    @torch.no_grad()
    def decode_indices(
        self,
        semantic_indices: Int[Tensor, "b 32"] | None,
        guide_indices: tuple[Int[Tensor, "b _ _"], ...] | None,
        image_size: tuple[int, int],
        size: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
        *,
        progress: bool = False,
        **options: Unpack[DecodeOverrides],
    ) -> Float[Tensor, "b 3 H W"]:
        """`decode` from either kind of index alone, for controls and ablations.

        Without semantic indices the condition is the null condition. Without guide indices the decode starts from pure
        noise and takes all steps. The noise is a function of the indices that are given.
        """
        read = ([] if semantic_indices is None else [semantic_indices]) + list(guide_indices or ())
        generators = image_generators(read, generator)
        return self.diffusion.decode(
            None if guide_indices is None else self.decode_guide(guide_indices, image_size),
            None if semantic_indices is None else self.semantic.decode(semantic_indices.to(self.device)),
            size or image_size,
            generator=generators,
            progress=progress,
            **options,
        )

    @torch.no_grad()
    def decode_guide(
        self, guide_indices: tuple[Int[Tensor, "b _ _"], ...], image_size: tuple[int, int]
    ) -> Float[Tensor, "b 3 h w"]:
        """The guide images alone, at the guide's own size for images of `image_size`, clamped to [-1, 1]."""
        grids = tuple(grid.to(self.device) for grid in guide_indices)
        # A prefix of a nested guide does not always determine the full grid; the image size does.
        guide_images = self.guide.decode(grids, grid_size=self.guide.config.grid_size(image_size))
        return guide_images.float().clamp(-1, 1)

    def reconstruct(
        self,
        images: Float[Tensor, "b 3 h w"],
        generator: torch.Generator | None = None,
        *,
        size: tuple[int, int] | None = None,
        guide_scales: int | None = None,
        progress: bool = False,
        **options: Unpack[DecodeOverrides],
    ) -> Float[Tensor, "b 3 H W"]:
        """`decode(encode(images))`."""
        tokens = self.encode(images, guide_scales=guide_scales)
        return self.decode(tokens, size, generator, progress=progress, **options)

    def num_tokens(self, tokens: HybridTokens) -> Int[Tensor, "b"]:
        """Tokens per image: the semantic ones and the guide's."""
        return torch.full((len(tokens),), tokens.num_tokens)

    def bits(self, tokens: HybridTokens) -> Float[Tensor, "b"]:
        """Bits per image."""
        bits = tokens.bits(self.semantic.codebook_size, self.guide.codebook_size)
        return torch.full((len(tokens),), bits)

    def vocabulary(self, text_vocab_size: int = 0, image_size: tuple[int, int] | None = None) -> HybridVocabulary:
        """The ids of this tokenizer's codes after `text_vocab_size` text ids, for images of one size (default: native)."""
        if image_size is None:
            image_size = (self.guide.config.image_size, self.guide.config.image_size)
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
                f"resize to {nearest}, or make a square with hybrid_tokenizer.images.fit_square(image, {self.native_size})"
            )

    def check_tokens(self, tokens: HybridTokens) -> None:
        """Raise when another tokenizer made `tokens`, or when their grids are not those of their image size."""
        check_source(tokens.source, self.source)
        self.check_size(*tokens.image_size)
        expected = tuple(self.guide.guide_scale_sizes(tokens.image_size))
        if tokens.grid_shapes != expected[: len(tokens.grid_shapes)]:
            raise HybridTokenizerError(
                f"tokens have guide grids {tokens.grid_shapes}, {self.name!r} makes {expected} of {tokens.image_size} "
                "images; use the tokenizer and image_size that made them"
            )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "HybridTokenizer":
        """Move, and cast the weights to `dtype`. Codebook distances and diffusion latents stay fp32."""
        if dtype not in (None, torch.float32, torch.float16):
            _ = self.hash  # of the weights as loaded: bf16 would round them
        for module in self._modules.values():
            module.to(device=device)
        if dtype is not None:
            self.diffusion.to(dtype=dtype)
            for branch in (self.guide, self.semantic):
                codebook = {key: value.clone() for key, value in branch.quantizer.state_dict().items()}
                branch.to(dtype=dtype)
                branch.quantizer.float().load_state_dict(codebook)  # rounded codes would be other codes
        self._slice_vae()
        return self

    def compile(self, mode: str = "default", backend: str = "inductor") -> "HybridTokenizer":
        """`devices.compile_in_place` for the networks of all branches.

        Results agree up to rounding, so a token on the border between two codes may change.
        """
        self.diffusion.compile_unet(mode, backend)
        networks = [
            self.guide.encoder, self.guide.decoder, self.guide.refiner, self.semantic.vision, self.semantic.causal_qformer,
            self.diffusion.vae.encoder, self.diffusion.vae.decoder,
        ]  # fmt: skip
        for network in networks:
            if network is not None:  # not every guide has a refiner
                compile_in_place(network, mode, backend)
        return self

    def _slice_vae(self) -> None:
        sliced = full_resolution_chunk(self.device) == 1
        self.diffusion.vae.enable_slicing() if sliced else self.diffusion.vae.disable_slicing()

    @property
    def _modules(self) -> dict[str, nn.Module]:
        return {"guide": self.guide, "semantic": self.semantic, "diffusion": self.diffusion}

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        *,
        subfolder: str | None = None,
        token: str | None = None,
        guide: str | Path | None = None,
        semantic: str | Path | None = None,
        diffusion: str | Path | None = None,
        search_steps: int | None = None,
    ) -> "HybridTokenizer":
        """From a preset's name, a folder that `save_pretrained` wrote, or a hub id `owner/name`.

        `subfolder` is where the tokenizer is inside the folder or the repository; `revision` (branch, tag or commit) and
        `token` are for the hub. `card` is then the model card beside the tokenizer, with its licence, where there is one.
        `guide`, `semantic` and `diffusion` are folders of components that replace the stored ones, such as the `final/`
        folder of a training run. `search_steps` replaces the stored number.
        """
        given = {"guide": guide, "semantic": semantic, "diffusion": diffusion}
        folders = {part: Path(folder) for part, folder in given.items() if folder is not None}
        name, home = str(source), None
        if len(folders) < len(COMPONENTS):
            home = _resolve(source, subfolder, revision, token)
            index = read_json(home / INDEX_NAME)
            if not isinstance(index, dict) or index.get("_class_name") != cls.__name__:
                raise HybridTokenizerError(
                    f"{home / INDEX_NAME} does not describe a {cls.__name__}; give a folder that save_pretrained wrote"
                )
            name = str(index.get("name", home.name))
            search_steps = index.get("search_steps", 0) if search_steps is None else search_steps
            folders = {part: home / part for part in COMPONENTS} | folders
        parts = {part: kind.from_pretrained(folders[part]) for part, kind in COMPONENTS.items()}
        made, read = parts["semantic"].config.generation_width, parts["diffusion"].config.cross_attention_dim
        if made != read:
            raise HybridTokenizerError(
                f"{folders['semantic']} makes embeddings of width {made}, {folders['diffusion']} reads width {read}; "
                "give components of one model"
            )
        tokenizer = cls(**parts, name=name, search_steps=search_steps or 0)
        if home is not None and (home / CARD_NAME).is_file():
            tokenizer.card = (home / CARD_NAME).read_text(encoding="utf-8")
        return tokenizer

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, max_shard_size: int | str = "10GB"
    ) -> None:
        """To a folder in diffusers' layout, weights in `dtype` where given (fp16 keeps the hash).

        Files of the U-Net and the VAE are split at `max_shard_size`, for hosts that limit the size of a file.

        The tokenizer is written beside the folder and renamed, so the folder never holds half of one. An older tokenizer is
        replaced, other top-level files (a README) are kept, and a folder that holds something else is refused.
        """
        folder = Path(folder)
        existing = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        if folder.is_file() or (existing and INDEX_NAME not in existing):
            raise HybridTokenizerError(f"{folder} exists and holds no tokenizer; give a new or empty folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            self.guide.save_pretrained(new / "guide", dtype=dtype)
            self.semantic.save_pretrained(new / "semantic", dtype=dtype)
            self.diffusion.save_pretrained(new / "diffusion", dtype=dtype, max_shard_size=max_shard_size)
            classes = {part: ["hybrid_tokenizer", home.__name__] for part, home in COMPONENTS.items()}
            index = {"_class_name": type(self).__name__, "_hybrid_tokenizer_version": __version__, "name": self.name}
            if self.search_steps:
                index["search_steps"] = self.search_steps
            write_json(new / INDEX_NAME, index | classes)
            for name in set(existing) - {INDEX_NAME, *COMPONENTS}:
                entry = folder / name
                (shutil.copytree if entry.is_dir() else shutil.copy2)(entry, new / name)
            if folder.is_dir():
                os.rename(folder, old)
            try:
                os.rename(new, folder)
            except OSError:
                if old.is_dir():
                    os.rename(old, folder)
                raise

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> None:
        """Upload what `save_pretrained` writes to `owner/name` on the hub, creating the repository if need be.

        The model card that the tokenizer was loaded with goes along as README.md: it states the licence of the weights.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "tokenizer"
            self.save_pretrained(folder)
            if self.card is not None:
                write_atomic(folder / CARD_NAME, self.card.encode())
            hub.upload(repo_id, folder, private=private, token=token)


def decoded_losses(
    diffusion: DiffusionDecoder,
    distance: EfficientNetDistance,
    images: Float[Tensor, "b 3 h w"],
    generation_embeds: Float[Tensor, "b n d"] | None,
) -> GuideLosses:
    """The loss of the encoder's search: how far what `diffusion` decodes, with its default options, is from `images`."""
    size = (images.shape[-2], images.shape[-1])

    def losses_of(guide_images: Float[Tensor, "b 3 gh gw"]) -> Float[Tensor, "b"]:
        decoded = diffusion.decode(guide_images.clamp(-1, 1), generation_embeds, size, differentiable=True)
        return (decoded - images).square().mean((1, 2, 3)) + PERCEPTUAL_WEIGHT * distance(decoded, images)

    return losses_of


def image_generators(
    indices: Sequence[Int[Tensor, "b ..."]], generator: torch.Generator | None
) -> list[torch.Generator]:
    """One CPU generator per image, seeded by one draw from `generator` (without one: 0) and the image's own indices.

    An image's noise depends neither on the rest of the batch nor on its place in it. Equal images get equal noise.
    """
    base = 0
    if generator is not None:
        base = int(torch.randint(SEED_RANGE, (1,), generator=generator, device=generator.device).item())
    flat = torch.cat([part.flatten(1) for part in indices], dim=1).to("cpu", torch.int64)
    generators = []
    for row in flat.numpy():
        digest = hashlib.sha256(base.to_bytes(8, "little") + row.tobytes()).digest()
        seed = int.from_bytes(digest[:8], "little") % SEED_RANGE
        generators.append(torch.Generator().manual_seed(seed))
    return generators


def _resolve(source: str | Path, subfolder: str | None, revision: str | None, token: str | None) -> Path:
    """The local folder behind a preset's name, a path or a hub id."""
    text = str(source)
    if text in list_presets():
        source = PRESETS / text
    elif text == "sd15" and not Path(text).is_dir():
        raise HybridTokenizerError(
            "the weights of 'sd15' are not embedded; put a folder together from a trained guide (scripts/train_guide.py "
            "model=sd15), a SEED v1 conversion (scripts/convert_checkpoint.py seed1 ...) and a Stable Diffusion 1.5 folder, "
            "and give model_name=any components.guide=DIR components.semantic=DIR components.diffusion=DIR"
        )
    elif not Path(source).is_dir() and not hub.is_hub_id(source):
        raise HybridTokenizerError(
            f"{text!r} is no preset, folder or hub id; presets: {', '.join(list_presets()) or 'none installed'}"
        )
    return hub.folder(source, subfolder=subfolder, revision=revision, token=token, patterns=HUB_PATTERNS)


def _around(side: int, factor: int) -> tuple[int, int]:
    """The multiples of `factor` below and above, at least one."""
    return max(1, side // factor) * factor, max(1, math.ceil(side / factor)) * factor
