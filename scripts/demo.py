"""Run hybrid_tokenizer.commands.demo."""

from hybrid_tokenizer.commands.demo import main

if __name__ == "__main__":
    main()
