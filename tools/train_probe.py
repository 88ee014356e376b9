"""Train the offline text-image score `probe_score` on photographs and captions. See --help for the options."""

from hybrid_tokenizer.config import command
from hybrid_tokenizer.training.probe import TrainProbeConfig, train_probe


@command("train_probe")
def run(config: TrainProbeConfig) -> None:
    facts = train_probe(config)
    for name, value in facts["validation"].items():
        print(f"{name} {value:.4g}")
    print(f"written to {config.output_dir}")


if __name__ == "__main__":
    run()
