"""Training of a language model on documents of captions and image tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.checkpoints.files import give_umask_mode
from hybrid_tokenizer.language.config import SamplingConfig, TokenLossWeights
from hybrid_tokenizer.language.documents import TEXT, Document, kind_names
from hybrid_tokenizer.language.generate import write_images
from hybrid_tokenizer.language.model import LanguageModel, merged
from hybrid_tokenizer.language.packing import kind_losses, pack
from hybrid_tokenizer.language.scores import score_documents, summarize_kinds
from hybrid_tokenizer.language.vocabulary import budgets, save_vocabulary
from hybrid_tokenizer.tokens import HybridTokens
from hybrid_tokenizer.training.objective import Objective, Validated
from hybrid_tokenizer.training.sharding import gathered


class LanguageObjective(Objective):
    """Cross-entropy over the whole vocabulary, the mean over tokens weighted by kind.

    Args:
        row_length: tokens per packed row.
        paint: decodes tokens, so that validation draws pictures; without it there are none.
        num_pictures: captions drawn at each validation.
    """

    next_command = "hybrid-tokenizer generate language_model={final} 'prompt=a dog on the grass'"
    exports_sharded = True

    def __init__(
        self,
        lm: LanguageModel,
        loss: TokenLossWeights,
        row_length: int,
        paint: Callable[[HybridTokens], Float[Tensor, "b 3 h w"]] | None = None,
        num_pictures: int = 4,
        sampling: SamplingConfig | None = None,
    ):
        super().__init__()
        self.model = lm.model
        self.lm, self.row_length, self.paint, self.num_pictures = lm, row_length, paint, num_pictures
        self.sampling = sampling or SamplingConfig()
        self.names = kind_names(lm.vocabulary)
        weights = torch.tensor(loss.by_kind(len(lm.vocabulary.grid_shapes)))
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Float[Tensor, ""]]:
        packed = pack(batch["documents"], self.row_length).to(self.weights.device)
        losses = kind_losses(self.model, packed, len(self.names))
        named = {
            name: losses.sums[kind] / losses.counts[kind]
            for kind, name in enumerate(self.names)
            if losses.counts[kind] > 0
        }
        return {"total": losses.total(self.weights), **named}

    def validate(self, batches: list[dict[str, Any]]) -> Validated:
        documents = [document for batch in batches for document in batch["documents"]]
        scores = score_documents(self.model, documents, self.lm.vocabulary, self.row_length)
        weights = self.weights.cpu().double().numpy()[scores.kinds]
        figures = {"loss": float((weights * scores.losses).sum() / weights.sum())}
        return Validated(figures | summarize_kinds(scores, self.lm.vocabulary), self._draw(documents))

    def _draw(self, documents: list[Document]) -> Float[Tensor, "rows columns 3 h w"] | None:
        """Above: held-out images as their tokens give them. Below: what the model draws from their captions."""
        captioned = [document for document in documents if document.kinds[1:2].tolist() == [TEXT]][: self.num_pictures]
        if self.paint is None or not captioned:
            return None
        vocabulary = self.lm.vocabulary
        starts = [document.ids.tolist().index(vocabulary.begin_id) for document in captioned]
        prompts = [document.ids[: start + 1].tolist() for document, start in zip(captioned, starts, strict=True)]
        budget = budgets(vocabulary)[-1]
        drawn = write_images(self.lm, prompts, budget, self.sampling)
        images = [
            torch.from_numpy(document.ids[start : start + budget + 2])
            for document, start in zip(captioned, starts, strict=True)
        ]
        own = HybridTokens.from_token_ids(torch.stack(images), vocabulary)
        return torch.stack([self.paint(own).cpu(), self.paint(drawn).cpu()])

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        model = merged(self.model)
        state = gathered({name: parameter.detach() for name, parameter in model.named_parameters()})
        if state is not None:  # None on all ranks but the first
            model.save_pretrained(folder, state_dict=state)
            give_umask_mode(*folder.glob("*.safetensors"))
            save_vocabulary(folder, self.lm.tokenizer, self.lm.vocabulary)

    def saved_state(self) -> dict[str, Tensor]:
        """What trains, each tensor once: neither the frozen weights under adapters nor the second name of tied ones."""
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}
