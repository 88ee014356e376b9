"""The baselines' published file layouts at full size: random weights are written, loaded and measured as by a user."""
