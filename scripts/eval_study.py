"""Run hybrid_tokenizer.commands.eval_study."""

from hybrid_tokenizer.commands.eval_study import main

if __name__ == "__main__":
    main()
