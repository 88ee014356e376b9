"""One file per command. `scripts/` and the console command enter here."""
