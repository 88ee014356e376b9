"""The demo page: a photograph to token ids and back, with every choice of decoding in the reader's hand."""
