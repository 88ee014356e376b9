"""Run hybrid_tokenizer.commands.convert."""

from hybrid_tokenizer.commands.convert import main

if __name__ == "__main__":
    main()
