"""Run hybrid_tokenizer.commands.benchmark."""

from hybrid_tokenizer.commands.benchmark import main

if __name__ == "__main__":
    main()
