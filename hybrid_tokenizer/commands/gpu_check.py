"""Check the CUDA path of this installation on a GPU, or in its reduced form on a CPU."""

import argparse
from pathlib import Path

from hybrid_tokenizer.errors import HybridTokenizerError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=f"{__doc__} It needs a folder of pictures and no network, and takes at most 8 minutes on one H100.",
        epilog="example: hybrid-tokenizer gpu-check --pictures PHOTOS --output out/gpu",
    )
    parser.add_argument("--pictures", metavar="FOLDER", help="pictures to encode; the built-in photographs")
    parser.add_argument("--output", default="outputs/gpu_check", metavar="FOLDER", help="where the table goes (%(default)s)")  # fmt: skip
    parser.add_argument("--reduced", action="store_true", help="small sizes on the CPU: shows that every section runs")
    parser.add_argument("--sections", metavar="NAMES", help="only these, separated by commas")
    options = parser.parse_args()
    # here, so that `--help` needs no model library
    import torch

    from hybrid_tokenizer.verification.gpu.config import GpuCheckConfig
    from hybrid_tokenizer.verification.gpu.run import run_checks

    try:
        if not options.reduced and not torch.cuda.is_available():
            raise HybridTokenizerError("no GPU is available to torch; use --reduced to check on the CPU")
        config = GpuCheckConfig(
            pictures=options.pictures,
            output=options.output,
            device="cpu" if options.reduced else "cuda",
            reduced=options.reduced,
            sections=tuple(options.sections.split(",")) if options.sections else (),
        )
        rows = run_checks(config, lambda line: print(line, flush=True))
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
    wrong = [f"{row['section']}: {row['check']}" for row in rows if row["ok"] is False]
    print(f"{len(rows)} rows in {Path(options.output) / 'gpu_check.md'}; wrong: {', '.join(wrong) or 'none'}")
    if wrong:
        raise SystemExit(1)
