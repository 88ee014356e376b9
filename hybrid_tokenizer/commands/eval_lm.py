"""Measure a language model on held-out photographs and captions: eval_lm data.root=FOLDER train_tokens=FOLDER output_dir=DIR.

Parts: unigrams, semantic_then_lm, text_to_image, captions, valid, search, budgets. A part that is done is kept; the same command
goes on with the others.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hybrid_tokenizer.checkpoints.files import read_json, state_hash, write_atomic, write_json
from hybrid_tokenizer.commands.config import EvalLM, command
from hybrid_tokenizer.commands.language_files import load_models
from hybrid_tokenizer.corpus.dataset import TokenDataset
from hybrid_tokenizer.data.items import folder_of, item_captions, item_path, list_pairs
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.measures import efficientnet
from hybrid_tokenizer.evaluation.pairs import open_pairs
from hybrid_tokenizer.evaluation.pictures import picture_grid, write_png
from hybrid_tokenizer.evaluation.scores import PROBE_FOLDER, build_score
from hybrid_tokenizer.evaluation.tables import Column, to_markdown
from hybrid_tokenizer.images import to_uint8
from hybrid_tokenizer.language import drawn, perplexity
from hybrid_tokenizer.language.documents import JoinedRows, check_rows, row_of_tokens
from hybrid_tokenizer.language.generate import draw
from hybrid_tokenizer.language.vocabulary import budgets
from hybrid_tokenizer.metrics.pixel import psnr
from hybrid_tokenizer.provenance import provenance
from hybrid_tokenizer.tokens import HybridTokens

RESULT, TABLE = "eval_lm.json", "eval_lm.md"


class Study:
    """What the parts measure: models, held-out photographs with captions and tokens, and the training's tokens."""

    def __init__(self, config: EvalLM):
        self.config = config
        self.hybrid, self.lm = load_models(config.model_name, config.language_model, config.device)
        if "search" in config.parts and config.search_steps and not self.hybrid.deterministic:
            raise HybridTokenizerError(
                f"search_steps={config.search_steps} needs a decoder that draws no noise, and that of {config.model_name} draws "
                "it; leave search out of parts"
            )
        self.pairs = open_pairs(config.data)
        if len(self.pairs.images) < 2:
            raise HybridTokenizerError(f"{config.data.root} has one usable image; eval_lm compares each with another's")
        self.references = torch.stack([self.pairs.images[index] for index in range(len(self.pairs.images))])
        self.training = JoinedRows([TokenDataset(folder) for folder in config.train_folders])
        check_rows(self.training, self.lm.vocabulary)
        self.tokens = self.encode(0)
        self.rows = self.rows_of(self.tokens)
        self.whole = budgets(self.lm.vocabulary)[-1]
        self.drawn, self.drawn_images = cache(self._draw), cache(self._decode_drawn)  # three parts use them
        self.score = build_score("probe_score", str(PROBE_FOLDER))

    def encode(self, search_steps: int) -> HybridTokens:
        """Tokens of the held-out photographs."""
        parts = self.references.split(self.config.batch_size)
        return HybridTokens.cat([self.hybrid.encode(part, search_steps=search_steps).to("cpu") for part in parts])

    def rows_of(self, tokens: HybridTokens) -> list[dict[str, Any]]:
        """As token shards hold them."""
        names, captions = self.pairs.images.names, self.pairs.captions
        return [row_of_tokens(tokens, index, name, [captions[index]]) for index, name in enumerate(names)]

    def all_captions(self) -> list[list[str]]:
        """Every caption that a photograph has, where captions.jsonl or shards hold them."""
        if self.config.data.annotations is not None:
            return [[caption] for caption in self.pairs.captions]
        root = Path(self.config.data.root or "")
        items, _ = list_pairs(root)
        by_name = {item_path(item).relative_to(folder_of(root)).as_posix(): item for item in items}
        return [list(item_captions(by_name[name])) for name in self.pairs.images.sources]

    def unigrams(self) -> dict[str, Any]:
        return perplexity.against_unigrams(self.lm, self.training, self.rows, self.config.row_length)

    def semantic_then_lm(self) -> dict[str, Any]:
        result = drawn.semantic_then_lm(
            self.hybrid, self.lm, self.tokens, self.references, self.pairs.captions, self.score,
            {"effnet_lite2_distance": efficientnet("lite2"), "psnr": psnr}, self.config.sampling, self.config.seed,
        )  # fmt: skip
        self.show("semantic_then_lm", {"original": self.references, **result.pictures}, self.pairs.images.names)
        return result.figures

    def _draw(self, budget: int) -> HybridTokens:
        """A picture of `budget` tokens for each caption."""
        return draw(self.lm, self.pairs.captions, budget, self.config.sampling, self.config.seed)

    def _decode_drawn(self, budget: int) -> torch.Tensor:
        """Those pictures, decoded: (b, 3, h, w)."""
        return drawn.decode_all(self.hybrid, self.drawn(budget))

    def text_to_image(self) -> dict[str, Any]:
        result = drawn.text_to_image(
            self.hybrid, self.lm, self.pairs.captions, self.drawn(self.whole), self.drawn_images(self.whole), self.tokens,
            self.training, self.score,
        )  # fmt: skip
        self.show("text_to_image", result.pictures, self.pairs.captions)
        return result.figures

    def captions(self) -> dict[str, Any]:
        return drawn.captions_of_photographs(
            self.lm, self.tokens, self.references, self.all_captions(), self.score, self.config.caption_sampling,
            self.config.seed,
        )  # fmt: skip

    def valid(self) -> dict[str, Any]:
        self.drawn(self.whole)  # raises unless each image is whole
        free = drawn.share_of_whole_images(self.lm, self.pairs.captions, self.config.sampling, self.config.seed)
        return {"constrained": 1.0} | free

    def search(self) -> dict[str, Any]:
        searched = self.rows_of(self.encode(self.config.search_steps))
        return perplexity.price_of_search(self.lm, self.rows, searched, self.config.row_length)

    def budgets(self) -> dict[str, Any]:
        held_out = perplexity.at_budgets(self.lm, self.rows, self.config.row_length)
        rows = []
        for row in held_out:
            images = self.drawn_images(row["budget"])
            rows.append(row | drawn.with_intervals(drawn.caption_scores(self.score, images, self.pairs.captions)))
        return {"rows": rows}

    def show(self, name: str, columns: dict[str, torch.Tensor], labels: list[str]) -> None:
        """A grid of the first pictures, a line each."""
        count = self.config.pictures
        if count:
            levels = [(title, to_uint8(images[:count])) for title, images in columns.items()]
            write_png(Path(self.config.output_dir) / f"{name}.png", picture_grid(levels, labels[:count]))


@command("eval_lm")
def main(config: EvalLM) -> None:
    folder = Path(config.output_dir)
    study = Study(config)
    facts = asdict(config) | {
        "language_model_sha256": state_hash(study.lm.model),
        "image_tokenizer": study.hybrid.hash,
        "pixels": study.pairs.images.pixels_hash,
        "captions": study.pairs.captions_hash,
    }
    of_results = {name: value for name, value in facts.items() if name not in ("parts", "output_dir", "device")}
    done = _done(folder / RESULT, of_results)
    measures: dict[str, Callable[[], dict[str, Any]]] = {name: getattr(study, name) for name in config.parts}
    for name, measure in measures.items():
        if name not in done:
            started = time.monotonic()
            done[name] = measure()
            write_json(folder / RESULT, {"parts": done, "facts": of_results, "provenance": provenance()})
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    table = report(done)
    write_atomic(folder / TABLE, table.encode())
    print(f"{table}\n{len(study.rows)} photographs; written to {folder}")


def _done(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Parts of an earlier run with the same models, data and options."""
    if not path.is_file():
        return {}
    earlier = read_json(path)
    if earlier.get("facts") != facts:
        raise HybridTokenizerError(f"{path} is of other models, data or options; give another output_dir")
    return earlier["parts"]


def report(parts: dict[str, Any]) -> str:
    """The parts' main figures as Markdown."""
    lines = []
    if "unigrams" in parts:
        rows = [
            {"kind": name, **entry} for name, entry in parts["unigrams"].items() if entry and "unigram_loss" in entry
        ]
        columns = [
            Column("kind", "kind of token"),
            Column("loss", "loss", ".3f"),
            Column("unigram_loss", "unigram", ".3f"),
        ]
        columns += [Column("per_position_unigram_loss", "unigram per position", ".3f")]
        columns += [Column("below_per_position", "below it", ".1%")]
        lines += ["Nats per held-out token:", "", to_markdown(rows, columns), ""]
    if "semantic_then_lm" in parts:
        rows = _means(parts["semantic_then_lm"]["rows"])
        columns = [Column("method", "method"), Column("own_caption", "probe, own caption", ".4f")]
        columns += [Column("own_minus_other", "minus another's", ".4f")]
        columns += [Column("effnet_lite2_distance", "feature distance", ".4f"), Column("psnr", "PSNR", ".2f")]
        lines += ["From the semantic tokens alone:", "", to_markdown(rows, columns), ""]
        compared = _means(parts["semantic_then_lm"]["semantic_then_lm_minus"])
        lines += ["semantic_then_lm minus:", "", to_markdown(compared, columns), ""]
    if "budgets" in parts:
        rows = [
            {name: value["mean"] if isinstance(value, dict) else value for name, value in row.items()}
            for row in parts["budgets"]["rows"]
        ]
        columns = [Column("budget", "tokens", "d"), Column("perplexity", "perplexity per token", ".1f")]
        columns += [
            Column("bits_per_image", "bits per image", ".0f"),
            Column("own_minus_other", "probe, own minus another's", ".4f"),
        ]
        lines += ["By budget:", "", to_markdown(rows, columns), ""]
    for name in ("text_to_image", "captions", "valid", "search"):
        if name in parts:
            lines += [f"{name}: {_short(parts[name])}", ""]
    return "\n".join(lines)


def _means(rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"method": name} | {key: entry["mean"] for key, entry in row.items()} for name, row in rows.items()]


def _short(part: dict[str, Any]) -> str:
    """Numbers of a part in a line; means with their interval."""
    shown = []
    for name, value in part.items():
        if isinstance(value, dict) and "interval" in value and value["interval"]:
            low, high = value["interval"]
            shown.append(f"{name} {value['mean']:.4f} ({low:.4f} to {high:.4f})")
        elif isinstance(value, dict) and "difference" in value:
            low, high = value["difference"]["interval"]
            shown.append(f"{name} {value['difference']['mean']:+.4f} ({low:+.4f} to {high:+.4f})")
        elif isinstance(value, float | int):
            shown.append(f"{name} {value:.4g}")
    return ", ".join(shown)
