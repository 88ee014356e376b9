"""Run hybrid_tokenizer.commands.train_guide."""

from hybrid_tokenizer.commands.train_guide import main

if __name__ == "__main__":
    main()
