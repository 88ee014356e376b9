"""Run hybrid_tokenizer.commands.eval_alignment."""

from hybrid_tokenizer.commands.eval_alignment import main

if __name__ == "__main__":
    main()
