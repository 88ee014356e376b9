"""Fast tokenizers without a network: BERT's from a package, CLIP's from open_clip's merges, a byte-level BPE trained here."""

from open_clip.tokenizer import SimpleTokenizer
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerFast

from hybrid_tokenizer.text import minilm_folder

CAPTIONS = [
    "a dog runs over the grass", "two children play with a red ball", "the cat sleeps on a chair",
    "a man rides a bicycle past a house", "a boat on the blue lake", "birds above the old town",
]  # fmt: skip


def bert():
    return AutoTokenizer.from_pretrained(minilm_folder(), local_files_only=True)


def open_clip():
    simple = SimpleTokenizer()
    begin, end = "<start_of_text>", "<end_of_text>"
    return CLIPTokenizer(
        vocab=simple.encoder,
        merges=list(simple.bpe_ranks),
        bos_token=begin,
        eos_token=end,
        unk_token=end,
        pad_token=end,
    )


def byte_level():
    """The tokenizer of GPT-2 and Llama 3, small."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CAPTIONS, vocab_size=300, special_tokens=["<s>", "</s>", "<pad>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


TOKENIZERS = {"bert": bert, "open_clip": open_clip, "byte_level": byte_level}
