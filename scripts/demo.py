"""Serve a page that turns a photograph into token ids and back, with budget, strength, steps and guidance to play with."""

import argparse

from hybrid_tokenizer.errors import HybridTokenizerError


def run(options: argparse.Namespace) -> None:
    from hybrid_tokenizer.apps.demo.app import demo_app
    from hybrid_tokenizer.apps.demo.pictures import Darkroom
    from hybrid_tokenizer.apps.web import serving
    from hybrid_tokenizer.devices import choose_device
    from hybrid_tokenizer.hybrid import HybridTokenizer

    tokenizer = HybridTokenizer.from_pretrained(options.model).to(choose_device(options.device))
    access = serving.access_for(options.host)
    serving.serve(demo_app(Darkroom(tokenizer, options.text_vocab_size), access), options.host, options.port, access)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens it to others, by a link with a token")
    parser.add_argument("--port", type=int, default=8001, help="0 takes a free one (%(default)s)")
    parser.add_argument("--model", default="tiny", help="preset, folder or hub id (%(default)s)")
    parser.add_argument("--text-vocab-size", type=int, default=0, help="text ids before those of images (%(default)s)")
    parser.add_argument("--device", help="cpu, cuda; the GPU where there is one")
    options = parser.parse_args()
    try:
        run(options)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
