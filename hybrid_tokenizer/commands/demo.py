"""Serve a page that turns a photograph into token ids and back, with sliders for budget, strength, steps and guidance.

With a language model it also draws what a text says, and says what a picture shows.
"""

import argparse

from hybrid_tokenizer.errors import HybridTokenizerError


def run(options: argparse.Namespace) -> None:
    """Load the tokenizer and serve until interrupted. Imports are here so that `--help` needs no model library."""
    from hybrid_tokenizer.apps.demo.app import demo_app
    from hybrid_tokenizer.apps.demo.pictures import DemoTokenizer
    from hybrid_tokenizer.apps.demo.writing import DemoWriter
    from hybrid_tokenizer.apps.web import serving
    from hybrid_tokenizer.devices import choose_device
    from hybrid_tokenizer.hybrid import HybridTokenizer
    from hybrid_tokenizer.language.model import language_model_names, load_language_model

    tokenizer = HybridTokenizer.from_pretrained(options.model).to(choose_device(options.device))
    tokenizer.render_size = options.render_size or tokenizer.diffusion.config.trained_size
    page = DemoTokenizer(tokenizer, options.text_vocab_size)
    name = options.language_model or next((one for one in language_model_names() if one == f"{options.model}_lm"), None)
    writer = None
    if name is not None:
        lm = load_language_model(name, tokenizer.source)
        lm.model.to(tokenizer.device)
        writer = DemoWriter(lm, page.vocabulary)
    access = serving.access_for(options.host)
    app = demo_app(page, access, writer=writer)
    serving.serve(app, options.host, options.port, access)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 admits other machines, by a link with a token (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=8001, help="0 picks a free port (%(default)s)")
    parser.add_argument("--model", default="tiny", help="preset, folder or hub id (%(default)s)")
    parser.add_argument(
        "--language-model",
        help="draws from a text and writes captions: preset, folder or hub id; the embedded one of the preset",
    )
    parser.add_argument(
        "--text-vocab-size", type=int, default=0, help="text ids that come before the image ids (%(default)s)"
    )
    parser.add_argument(
        "--render-size", type=int, help="side at which diffusion draws; what the diffusion model was trained for"
    )
    parser.add_argument("--device", help="cpu or cuda; the GPU if there is one")
    options = parser.parse_args()
    try:
        run(options)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
