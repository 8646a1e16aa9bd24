"""A language model and a tokenizer that are made in a second, for tests and examples without any download."""

from collections.abc import Sequence
from typing import Any

from matrix_ssl.errors import MissingExtra

END, FILLER = "</s>", "<pad>"


def tiny_tokenizer(texts: Sequence[str], *, vocabulary: int = 300) -> Any:
    """A tokenizer of transformers, learned from texts: pairs of bytes, so that it can write any text.

    Args:
        vocabulary: tokens at most; 258 are the bytes, the end and the filler.

    Raises:
        MissingExtra: transformers is not installed.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise MissingExtra("transformers", "llm") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, FILLER], initial_alphabet=bytes_, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=FILLER)


def tiny_llama(
    tokenizer: Any, *, d: int = 32, layers: int = 2, heads: int = 2, length: int = 512, seed: int = 0
) -> Any:
    """A Llama with random weights in float32 and a row for each token of the tokenizer.

    Args:
        d: width; a multiple of twice ``heads``.
        length: positions at most.

    Raises:
        MissingExtra: transformers is not installed.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM, set_seed
    except ImportError as error:
        raise MissingExtra("transformers", "llm") from error
    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=d,
            intermediate_size=2 * d,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=length,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
