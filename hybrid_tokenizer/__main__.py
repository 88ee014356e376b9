"""`python -m hybrid_tokenizer COMMAND`, also as `accelerate launch -m hybrid_tokenizer train-guide ...`."""

from hybrid_tokenizer.commands.cli import main

if __name__ == "__main__":
    main()
