"""Run hybrid_tokenizer.commands.check_parity."""

from hybrid_tokenizer.commands.check_parity import main

if __name__ == "__main__":
    main()
