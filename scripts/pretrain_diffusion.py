"""Run hybrid_tokenizer.commands.pretrain_diffusion."""

from hybrid_tokenizer.commands.pretrain_diffusion import main

if __name__ == "__main__":
    main()
