"""The three branches as one torch module: moving, casting, compiling and hashing."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import state_hash
from hybrid_tokenizer.devices import compile_in_place
from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError, first_line, shown
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.hybrid.identity import first_hash, tokenizer_hash
from hybrid_tokenizer.images import full_resolution_chunk
from hybrid_tokenizer.semantic import SemanticTokenizer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Kind = TypeVar("Kind", bound="Branches")
HASHES = ("hash", "first_hash", "_weight_hashes")


class Branches(nn.Module):
    """The branches of a HybridTokenizer. They are always in evaluation mode."""

    def __init__(self, guide: GuideTokenizer, semantic: SemanticTokenizer, diffusion: DiffusionDecoder):
        super().__init__()
        # Convolutions are fastest in channels_last, on CPU and GPU. Stored files keep their layout.
        self.guide = guide.to(memory_format=torch.channels_last)
        # Only training reads the cosine stack. Without it, hash and stored form are those of the published tokenizer.
        self.semantic = semantic.without_cosine_stack() if semantic.config.cosine_stack else semantic
        self.diffusion = diffusion.to(memory_format=torch.channels_last)
        self.eval()
        self._slice_vae()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.guide.parameters()).device

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of the weights, rounded to fp16, and of all configuration that changes what they compute.

        It is the same in memory and in files of fp32 or fp16, on any device. It is computed once: build a new
        HybridTokenizer after training a branch further.
        """
        return tokenizer_hash(self._weight_hashes, self.guide, self.semantic, self.diffusion)

    @functools.cached_property
    def first_hash(self) -> str:
        """The hash in the form of token files of version 1."""
        return first_hash(self._weight_hashes, self.diffusion.config)

    @functools.cached_property
    def _weight_hashes(self) -> dict[str, str]:
        return {name: state_hash(branch, torch.float16) for name, branch in self.named_children()}

    def to(
        self: Kind, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | str | None = None
    ) -> Kind:
        """Move, and cast the weights.

        Codebooks stay fp32, and in fp16 so does the guide's decoder, whose activations pass the largest fp16 number. Latents
        and distances to codes are fp32 in any case.

        Args:
            device: such as "cuda".
            dtype: torch.float32, bfloat16 or float16.

        Raises:
            HybridTokenizerError: another dtype, or a device that torch does not know or have.

        Examples:
            >>> tokenizer.to("cuda", torch.bfloat16)
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        dtype = None if dtype is None else as_dtype(dtype)
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise HybridTokenizerError(
                f"device={device!r} cannot be used ({first_line(error)}); use cpu or cuda"
            ) from None
        return super().to(device=device, dtype=dtype)

    def _apply(self: Kind, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Kind:
        """Apply `fn`, which `to`, `half`, `cuda` and similar methods pass, to every tensor."""
        made = {fn(torch.zeros((), dtype=dtype)).dtype for dtype in (torch.float32, torch.float64)}
        if len(made) > 1:  # `fn` keeps the dtype
            super()._apply(fn, recurse)
        else:
            self._cast(fn, as_dtype(made.pop()), recurse)
        self._slice_vae()
        return self

    def _cast(self, fn: Callable[[Tensor], Tensor], dtype: torch.dtype, recurse: bool) -> None:
        if dtype == torch.bfloat16:
            _ = self._weight_hashes  # hash the weights as loaded: bf16 would round them
        kept: list[nn.Module] = [self.guide.quantizer, self.semantic.quantizer]  # rounding would change the codes
        if dtype == torch.float16:
            kept += self.guide.decoding_modules()
        states = [{key: value.clone() for key, value in module.state_dict().items()} for module in kept]
        super()._apply(fn, recurse)
        for module, state in zip(kept, states, strict=True):
            module.float().load_state_dict(state)

    def train(self: Kind, mode: bool = True) -> Kind:
        """Keep evaluation mode, the only one. `train(False)` and `eval()` do nothing; `train()` raises and says how to
        train the branches."""
        if mode:
            raise HybridTokenizerError(
                "a HybridTokenizer has no training mode: its branches train one by one, with hybrid-tokenizer train-guide, "
                "train-semantic and pretrain-diffusion, and hybrid-tokenizer assemble puts them together"
            )
        return super().train(False)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """torch's `load_state_dict`. The hash is then computed anew."""
        result = super().load_state_dict(*arguments, **options)
        for name in HASHES:
            self.__dict__.pop(name, None)
        return result

    def compile(self: Kind, mode: str = "default", backend: str = "inductor") -> Kind:
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


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The torch dtype, given as such or by name. Raises if weights cannot have it."""
    by_name = {str(known).removeprefix("torch."): known for known in DTYPES}
    found = by_name.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES:
        raise HybridTokenizerError(f"dtype is {shown(dtype)}, expected float32, bfloat16 or float16")
    return found
