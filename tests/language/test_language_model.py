"""Models and text tokenizers of a run: built, adapted, stored and read."""

import json

import pytest
import torch
from language_models import SMALL
from text_tokenizers import CAPTIONS, byte_level
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.config import LanguageModelConfig
from hybrid_tokenizer.language.llama import FactorisedLlamaForCausalLM
from hybrid_tokenizer.language.model import (
    build_model,
    load_language_model,
    merged,
    read_text_tokenizer,
    train_text_tokenizer,
)
from hybrid_tokenizer.language.vocabulary import Codebooks, add_image_tokens, save_vocabulary
from hybrid_tokenizer.tokens import TokenSource

CODEBOOKS = Codebooks(torch.randn(20, 8), torch.randn(50, 4))
SIZES = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 32, "max_length": 128}


def built(tokenizer=None, **options):
    tokenizer = tokenizer or byte_level()
    vocabulary = add_image_tokens(tokenizer, SMALL)
    torch.manual_seed(0)
    config = LanguageModelConfig(**(SIZES | options))
    return (
        build_model(config, tokenizer, vocabulary, CODEBOOKS, torch.Generator().manual_seed(0)),
        tokenizer,
        vocabulary,
    )


@pytest.mark.parametrize("embedding_width", [4, None])
def test_a_new_llama_is_stored_and_read_with_its_vocabulary(embedding_width, tmp_path):
    model, tokenizer, vocabulary = built(embedding_width=embedding_width)
    assert isinstance(model, FactorisedLlamaForCausalLM) == (embedding_width is not None)
    assert model.get_input_embeddings().weight.shape == (384, embedding_width or 16)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sum("lm_head" in name for name, _ in model.named_parameters()) == 0, "tied"
    model.half().save_pretrained(tmp_path)
    save_vocabulary(tmp_path, tokenizer, vocabulary)
    read = load_language_model(str(tmp_path), SMALL.source)
    assert read.vocabulary == vocabulary and read.model.dtype == torch.float32
    ids = torch.randint(vocabulary.size, (2, 9))
    same = built(embedding_width=embedding_width)[0].eval()
    same.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    torch.testing.assert_close(read.model(ids).logits, same(ids).logits, rtol=0, atol=1e-6)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), type(model))
    with pytest.raises(HybridTokenizerError, match="made by tokenizer 'small'"):
        load_language_model(str(tmp_path), TokenSource("other", "0" * 64))
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads((tmp_path / "config.json").read_text()) | {"hybrid_vocabulary": "0" * 64})
    )
    with pytest.raises(HybridTokenizerError, match="use the model that was trained on them"):
        load_language_model(str(tmp_path))


def test_factorised_llama_generates_as_it_computes_without_a_cache():
    model, _, _ = built(embedding_width=4)
    ids = torch.randint(3, 250, (2, 7))
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6, eos_token_id=None
    )
    for position in range(7, 13):
        assert torch.equal(model(written[:, :position]).logits[:, -1].argmax(-1), written[:, position])
    embedded = model.widen(model.get_input_embeddings()(ids)) + model.places.weight[0]
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, model(ids).logits)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])


def base_folder(tmp_path, tied=True):
    """A text-only model as it is published: more rows than its tokenizer has ids."""
    torch.manual_seed(1)
    tokenizer = byte_level()
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_published_model_keeps_what_it_says_of_text(tmp_path):
    base = base_folder(tmp_path)
    model, tokenizer, vocabulary = built(read_text_tokenizer(base), base=base, row_start="statistics")
    original = AutoModelForCausalLM.from_pretrained(base)
    ids = tokenizer(CAPTIONS[0], return_tensors="pt").input_ids
    size = vocabulary.text_vocab_size
    torch.testing.assert_close(model(ids).logits[..., :size], original(ids).logits[..., :size])
    assert model.get_input_embeddings().weight.shape[0] == 384


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_adapters_and_the_rows_of_images_alone(tied, tmp_path):
    base = base_folder(tmp_path, tied)
    model, _, vocabulary = built(read_text_tokenizer(base), base=base, lora_rank=2)
    model.double()  # merging rounds the weights, and rounding in fp32 can exceed any tight bound
    before = {name: value.clone() for name, value in merged(model).state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(map(torch.numel, trained)) < 0.4 * sum(map(torch.numel, model.parameters()))
    optimizer = torch.optim.SGD(trained, lr=0.5)
    ids = torch.tensor([[1, 5, vocabulary.begin_id, vocabulary.semantic_offset + 3, vocabulary.guide_offset + 7, 6]])
    for _ in range(3):
        logits = model(input_ids=ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    whole = merged(model)
    assert isinstance(whole, LlamaForCausalLM)
    torch.testing.assert_close(whole(ids).logits, model(input_ids=ids).logits, rtol=1e-9, atol=1e-9)
    after = whole.state_dict()
    assert set(after) == set(before)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        text = slice(0, vocabulary.begin_id)
        assert torch.equal(after[name][text], before[name][text])
        assert not torch.equal(after[name][vocabulary.begin_id :], before[name][vocabulary.begin_id :])
    assert not torch.equal(after["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"])
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"])


def test_a_text_tokenizer_of_captions_is_the_same_each_time_and_reads_any_text():
    one, other = (train_text_tokenizer(iter(CAPTIONS), 320) for _ in range(2))
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert len(one) <= 320
    for text in ("a dog runs", "Ein Größenvergleich, 3 €!", "\n\t日本"):
        assert one.decode(one(text).input_ids).strip() == text.lower().strip()
    assert len(one("a dog").input_ids) < len(one("x qzj").input_ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "nowhere"}, "nowhere does not exist; give the folder of a causal language model"),
        ({"lora_rank": 4}, r"lm.lora_rank adapts a trained model"),
        ({"row_start": "zeros"}, r"row_start='zeros' is unknown"),
        ({"width": 18}, r"lm.width=18 must be a multiple of twice lm.heads=2"),
        ({"dtype": "int8"}, "use one of float32, bfloat16, float16"),
        ({"layers": 0}, r"lm.layers=0 must be at least 1"),
        ({"text_vocab_size": 200}, "must be at least 300"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(HybridTokenizerError, match=message):
        built(**options)


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(HybridTokenizerError, match=r"no causal language model can be read from .* give a folder"):
        built(base=str(tmp_path))
    with pytest.raises(HybridTokenizerError, match="no tokenizer can be read from"):
        read_text_tokenizer(str(tmp_path))
    with pytest.raises(HybridTokenizerError, match=r"hybrid_vocabulary.json does not exist"):
        load_language_model(str(tmp_path))
    config = LanguageModelConfig(**SIZES)
    tokenizer = byte_level()
    with pytest.raises(HybridTokenizerError, match="needs the image tokenizer"):
        build_model(config, tokenizer, add_image_tokens(tokenizer, SMALL), None, torch.Generator())
