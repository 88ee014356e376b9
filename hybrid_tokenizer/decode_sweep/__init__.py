"""The sweep over ways of decoding, and the default that it recommends."""
