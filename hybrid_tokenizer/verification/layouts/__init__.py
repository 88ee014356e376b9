"""The public layouts of the baselines at full size: files of random weights in them, loaded and measured as a user would."""
