"""The commands, one file each: compose the configuration, build the parts, call the library. `scripts/` enters here."""
