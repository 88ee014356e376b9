"""Run hybrid_tokenizer.commands.train_semantic."""

from hybrid_tokenizer.commands.train_semantic import main

if __name__ == "__main__":
    main()
