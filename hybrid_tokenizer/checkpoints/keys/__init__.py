"""Maps from foreign state-dict keys to ours, one file per publisher."""
