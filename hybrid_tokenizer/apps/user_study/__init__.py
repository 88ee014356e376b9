"""The user study of the paper's Table 4: raters rank reconstructions by closeness to the original, without their names."""
