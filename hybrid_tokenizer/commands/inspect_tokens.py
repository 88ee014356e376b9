"""Inspect token shards: use of the codes, bits per image, stability and robustness."""

from pathlib import Path
from typing import Any

from hybrid_tokenizer.checkpoints.files import write_atomic, write_json
from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.corpus.config import InspectConfig
from hybrid_tokenizer.corpus.dataset import TokenDataset
from hybrid_tokenizer.corpus.inspection import inspect_codes, robustness, stability
from hybrid_tokenizer.corpus.plots import draw_use
from hybrid_tokenizer.devices import choose_device
from hybrid_tokenizer.evaluation.tables import Column, to_markdown
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.provenance import provenance

COLUMNS = [
    Column("kind", "tokens of"),
    Column("tokens", "tokens", "d"),
    Column("codebook_usage", "codes used", ".1%"),
    Column("dead_codes", "dead codes", "d"),
    Column("perplexity", "perplexity", ".0f"),
    Column("entropy", "entropy", ".2f"),
    Column("uniform_bits", "uniform bits", ".0f"),
    Column("coded_bits", "coded bits", ".0f"),
    Column("stable", "stable ids", ".1%"),
]
DAMAGE = [Column("kind", "damaged ids"), Column("share", "share", ".0%"), Column("psnr", "PSNR, dB", ".1f")]


@command("inspect_tokens")
def main(config: InspectConfig) -> None:
    dataset = TokenDataset(config.input)
    found = inspect_codes(dataset, config.max_rows)
    if config.sample:
        tokenizer = HybridTokenizer.from_pretrained(config.model_name).to(choose_device(config.device))
        batches = [
            dataset.to_hybrid_tokens(one) for one in dataset.batches(dataset.spread(config.sample), config.batch_size)
        ]
        decoded = [tokenizer.decode(tokens) for tokens in batches]
        stable = stability(tokenizer, batches, decoded)
        found["kinds"] = [row | {"stable": stable[row["kind"]]} for row in found["kinds"]]
        found |= {"sample": sum(map(len, batches)), "damage": robustness(tokenizer, batches, decoded, config.seed)}
    found |= {"tokenizer": dataset.source._asdict(), "provenance": provenance()}
    folder = Path(config.output_dir)
    write_json(folder / "inspect.json", found)
    write_atomic(folder / "inspect.png", draw_use(found["kinds"]))
    text = report(found)
    write_atomic(folder / "inspect.md", text.encode())
    print(f"{text}\nwritten to {folder}")


def report(found: dict[str, Any]) -> str:
    """The table and what it sums up to."""
    lines = [
        to_markdown(found["kinds"], COLUMNS),
        f"{found['rows']} rows, {found['duplicate_rows']} of which repeat an earlier row. Bits per image: "
        f"{found['uniform_bits']:.0f} uniform, {found['coded_bits']:.0f} with an adaptive code, "
        f"{found['stored_bits']:.0f} as stored with captions and crops.\n",
    ]
    if "damage" in found:
        lines.append(to_markdown(found["damage"], DAMAGE))
    return "\n".join(lines)
