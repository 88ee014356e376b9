"""Run hybrid_tokenizer.commands.user_study."""

from hybrid_tokenizer.commands.user_study import main

if __name__ == "__main__":
    main()
