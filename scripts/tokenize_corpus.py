"""Run hybrid_tokenizer.commands.tokenize_corpus."""

from hybrid_tokenizer.commands.tokenize_corpus import main

if __name__ == "__main__":
    main()
