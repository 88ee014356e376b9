"""The demo page: encodes a photograph to token ids and decodes them, with all decoding options as controls."""
