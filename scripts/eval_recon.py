"""Run hybrid_tokenizer.commands.eval_recon."""

from hybrid_tokenizer.commands.eval_recon import main

if __name__ == "__main__":
    main()
