"""Maps from the state-dict keys of other projects to ours, one file per publisher."""
