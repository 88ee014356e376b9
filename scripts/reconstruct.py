"""Run hybrid_tokenizer.commands.reconstruct."""

from hybrid_tokenizer.commands.reconstruct import main

if __name__ == "__main__":
    main()
