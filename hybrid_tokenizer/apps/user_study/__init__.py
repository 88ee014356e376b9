"""The user study of the paper's Table 4: reconstructions ranked blindly against the original, and what the votes say."""
