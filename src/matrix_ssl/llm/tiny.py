"""A language model and a tokenizer built in a second, for tests and examples without a download."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matrix_ssl.errors import import_extra

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

END, FILLER = "</s>", "<pad>"


def tiny_tokenizer(texts: Sequence[str], *, vocabulary: int = 300) -> "PreTrainedTokenizerBase":
    """A byte-pair tokenizer of transformers, trained on texts; it can encode any text.

    Args:
        vocabulary: maximum number of tokens, of which 258 are the bytes, the end and the padding.

    Raises:
        MissingExtra: transformers is not installed.
    """
    transformers = import_extra("transformers", extra="llm")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, FILLER], initial_alphabet=bytes_, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=FILLER)


def tiny_llama(
    tokenizer: "PreTrainedTokenizerBase",
    *,
    d: int = 32,
    layers: int = 2,
    heads: int = 2,
    length: int = 512,
    seed: int = 0,
) -> "PreTrainedModel":
    """A Llama with random weights in float32 and a row for each token of the tokenizer.

    Args:
        d: width; a multiple of twice ``heads``.
        length: maximum number of positions.

    Raises:
        MissingExtra: transformers is not installed.
    """
    transformers = import_extra("transformers", extra="llm")
    transformers.set_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=d, intermediate_size=2 * d, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=length,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)
