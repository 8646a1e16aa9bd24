"""Every causal language model of transformers: is the loss from hidden states the one from its logits?

    python -m benchmarks.experiments.llm_architectures            (some minutes on one core; the same command goes on)
    python -m benchmarks.experiments.llm_architectures --quick    (three models, whether it runs)

A model of about two layers is made of every class that ``AutoModelForCausalLM`` knows, with random weights, and with
scale and cap of the logits moved away from 1. ``MatrixTrainer`` looks at its head there. Then all weights are moved at
random, so that what is zero at first (biases) would show, and value and gradient of the loss are compared with those of
its definition on the model's own logits. Every model is in the mode of training, both ways draw the same random
numbers, and it computes in float64 where it can. At weight 0 the loss is compared with the model's own.
"""

import inspect
import math
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from rich.console import Console
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.harness import ROOT, command_line, resume, save
from benchmarks.pages.tables import fill
from matrix_ssl.errors import ConfigError
from matrix_ssl.llm import MatrixTrainer, Objective
from matrix_ssl.llm.finetune.fused_head import find_form

QUICK = ("llama", "gemma2", "bart")
OBJECTIVE = Objective(weight=0.7)
ALLOWED = 1e-5  # relative error of the loss and of its gradient
MOST_PARAMETERS = 20_000_000
IDS = 80  # tokens that occur; those above have a meaning in some models

_VOCABULARY = 96
_SIZES: dict[int, str] = {
    _VOCABULARY: "vocab_size vocab_size_per_layer_input",
    64: "intermediate_size ffn_dim n_inner d_inner dim_ff dff encoder_ffn_dim decoder_ffn_dim ffn_hidden_size "
        "mlp_hidden_size mlp_intermediate_size intermediate_size_mlp max_position_embeddings n_positions n_ctx "
        "max_seq_len seq_length max_sequence_length max_target_positions max_source_positions mamba_d_ssm",
    32: "hidden_size d_model n_embd embed_dim dim_model emb_dim embedding_size word_embed_proj_dim "
        "input_embedding_size output_embedding_size moe_intermediate_size shared_expert_intermediate_size "
        "expert_ffn_hidden_size moe_shared_expert_intermediate_size shared_intermediate_size lru_width",
    16: "head_dim kv_channels attention_head_size v_head_dim qk_head_dim kv_lora_rank q_lora_rank global_head_dim "
        "dim_head mamba_d_head mamba_head_dim linear_key_head_dim linear_value_head_dim index_head_dim",
    8: "qk_nope_head_dim qk_rope_head_dim mamba_d_state ssm_state_size state_size mamba_chunk_size chunk_size "
       "sliding_window attention_window_size window_size hidden_size_per_layer_input laurel_rank rotary_dim",
    4: "n_routed_experts num_experts num_local_experts moe_num_experts expert_num mamba_n_heads mamba_num_heads "
       "conv_kernel time_step_rank mamba_dt_rank index_topk",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
       "num_decoder_layers num_attention_heads n_head n_heads num_heads encoder_attention_heads n_mamba_heads "
       "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads num_key_value_heads "
       "num_local_key_value_heads num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k mamba_expand "
       "linear_num_key_heads linear_num_value_heads altup_num_inputs index_n_heads eos_token_id sep_token_id",
    1: "n_shared_experts num_zero_experts zero_expert_num n_group topk_group num_expert_group moe_num_shared_experts "
       "mamba_n_groups n_groups first_k_dense_replace bos_token_id decoder_start_token_id",
    0: "pad_token_id num_kv_shared_layers n_special",
    90: "image_token_id image_token_index", 91: "audio_token_id audio_token_index", 92: "video_token_id",
    93: "boi_token_id vision_start_token_id", 94: "eoi_token_id vision_end_token_id",
    95: "boa_token_id eoa_token_id",
}  # fmt: skip
SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_LATENT = {"head_dim": 8}  # that of the rotated part alone
SPECIAL: dict[str, dict[str, Any]] = {  # what goes beyond sizes
    "axk1": _LATENT, "deepseek_v3": _LATENT, "longcat_flash": _LATENT, "youtu": _LATENT,
    "codegen": {"n_head": 4},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dbrx": {"attn_config": {"kv_n_heads": 2}, "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 64}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    **{kind: {"head_dim": 16} for kind in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "mimo_v2_flash": {"head_dim": 24},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "qwen3_5": {"text_config": _HYBRID}, "qwen3_5_moe": {"text_config": _HYBRID}, "qwen4_exp": {"text_config": _HYBRID},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local"], "local_attn_chunk_length": 4, "is_decoder": True,
                 "feed_forward_size": 64, "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0},
    "xlm": {"causal": True},
    "xmod": {"languages": ["en"], "default_language": "en"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4,
              "attention_head_dim": 32, "attention_hidden_size": 64},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "n_mamba_heads": 4},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip

Row = dict[str, Any]


def main() -> None:
    options = command_line(__doc__, "llm_architectures.json").parse_args()
    transformers.utils.logging.set_verbosity_error()
    rows: dict[str, Row] = resume(options.out).get("models", {})
    for kind in QUICK if options.quick else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if kind in rows:
            continue
        rows[kind] = row = compare(kind)
        save(options.out, {"models": rows, "allowed": ALLOWED}, versions={"transformers": transformers.__version__})
        Console().print(f"{kind}: {row['outcome']} {row.get('reason', '')}"[:200], markup=False)
    text = summary(rows.values())
    if not options.quick:
        fill(ROOT / "docs" / "llm.md", "architectures", textwrap.fill(text, 120, break_on_hyphens=False))
    Console().print(text, markup=False)
    if wrong := [kind for kind, row in rows.items() if is_wrong(row)]:
        raise SystemExit(f"The loss from hidden states is not that from logits: {', '.join(wrong)}.")


def is_wrong(row: Row) -> bool:
    """Whether the loss that the trainer takes differs from its definition."""
    return "loss_error" in row and not max(row["loss_error"], row["gradient_error"]) <= ALLOWED


def compare(kind: str) -> Row:
    """One kind of model, in float64, or in float32 if it has operations that need it."""
    row: Row = {}
    for dtype in (torch.float64, torch.float32):
        row = {"class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind], "dtype": str(dtype).removeprefix("torch.")}
        try:
            return row | compare_model(make_model(kind, dtype))
        except Exception as error:  # of any kind: whatever a class needs that this script does not give it
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            row |= {"outcome": "not compared", "reason": reason}
    return row


def make_model(kind: str, dtype: torch.dtype) -> Any:
    """A small model with random weights."""
    config = small(transformers.CONFIG_MAPPING[kind], SPECIAL.get(kind, {}))
    config.use_cache = False
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    auto = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        count = sum(p.numel() for p in auto.from_config(config).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count} parameters: its sizes have other names.")
    torch.manual_seed(0)
    return auto.from_config(config, dtype=dtype).to(dtype).train()


def small(kind: Any, changes: dict[str, Any]) -> Any:
    """A configuration of a class with small sizes, and with scale and cap of logits that show."""
    default = kind()
    values = default.to_dict()
    names = set(values) | set(inspect.signature(kind.__init__).parameters)
    chosen: dict[str, Any] = {
        name: SMALL[name] for name in names & SMALL.keys()
        if not isinstance(values.get(name), list | dict)
        and (values.get(name) is not None or name not in values or name.endswith("_token_id"))
    }  # fmt: skip
    for name, value in values.items():
        if isinstance(value, float) and any(part in name for part in ("logit", "lm_head", "output_multiplier")):
            chosen[name] = 3.0 if "cap" in name else 0.37
    for name in getattr(kind, "sub_configs", {}):
        if isinstance(part := getattr(default, name, None), transformers.PreTrainedConfig):
            chosen[name] = small(type(part), changes.get(name, {})).to_dict()
    return kind(**chosen | {name: value for name, value in changes.items() if name not in chosen or name in SMALL})


def compare_model(model: Any) -> Row:
    """How the trainer takes the loss of a model, and its errors."""
    ids = torch.randint(3, IDS, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :3] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    parameters = inspect.signature(type(model).forward).parameters.values()
    if not any(p.name == "attention_mask" or p.kind == p.VAR_KEYWORD for p in parameters):
        del inputs["attention_mask"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(folder, use_cpu=True, report_to="none", disable_tqdm=True)
        try:
            trainer = MatrixTrainer(model=model, args=arguments, matrix=OBJECTIVE)
            form, reason = find_form(model, model, inputs)
            trainer.compute_loss(model, {**inputs, "labels": labels})
        except ConfigError as error:
            return {"outcome": "refused", "reason": str(error)}
        move(model)
        torch.manual_seed(1)
        loss = trainer.compute_loss(model, {**inputs, "labels": labels})
    gradient = gradient_of(loss, model)
    torch.manual_seed(1)
    ce, expected = textbook(model(**inputs).logits, labels, model.get_output_embeddings().weight.detach())
    row: Row = {"outcome": "logits", "reason": reason}
    if form is not None:
        row = {"outcome": "hidden states", "scale": form.scale, "softcap": form.softcap}
    row["loss_error"] = abs(loss.item() - expected.item()) / abs(expected.item())
    reference = gradient_of(expected, model)
    row["gradient_error"] = math.inf
    if gradient.keys() == reference.keys():
        errors = ((gradient[name] - reference[name]).double().norm() ** 2 for name in reference)
        size = math.sqrt(sum(float(x.double().norm()) ** 2 for x in reference.values()))
        row["gradient_error"] = math.sqrt(sum(map(float, errors))) / size
    return row | {"difference_of_own_loss": own_difference(model, {**inputs, "labels": labels}, ce.item())}


def move(model: Any) -> None:
    """Moves all weights at random: after a training nothing is zero or one."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)


def textbook(logits: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and its sum with the weighted closed form, straight from the definition."""
    counted = labels[:, 1:] != -100
    z, targets = logits[:, :-1][counted], labels[:, 1:][counted]
    ce = torch.nn.functional.cross_entropy(z, targets)
    unit = torch.nn.functional.normalize(rows.to(z.dtype), dim=1)
    squares = (unit @ unit.T)[targets] ** 2
    mce = -torch.log((torch.softmax(z, 1) * squares).sum(1) + OBJECTIVE.ridge).mean()
    return ce, ce + OBJECTIVE.weight * mce


def gradient_of(loss: Tensor, model: Any) -> dict[str, Tensor]:
    """The gradient of every parameter that has one."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def own_difference(model: Any, batch: dict[str, Tensor], ce: float) -> float | None:
    """The relative difference of the model's own loss from the cross-entropy of shifted labels, if it computes one."""
    torch.manual_seed(1)
    try:
        return (float(model(**batch).loss) - ce) / ce
    except (ValueError, RuntimeError, TypeError, AttributeError):
        return None


def summary(rows: Iterable[Row]) -> str:
    """A paragraph: how many classes there are of each outcome."""
    best: dict[str, Row] = {}
    order = ("hidden states", "logits", "refused", "not compared")
    for row in sorted(rows, key=lambda row: order.index(row["outcome"])):
        best.setdefault(row["class"], row)
    count = Counter(row["outcome"] for row in best.values())
    errors = [row for row in best.values() if "loss_error" in row]
    loss, gradient = (max(row[key] for row in errors) for key in ("loss_error", "gradient_error"))
    unshifted = sorted(name for name, row in best.items() if abs(row.get("difference_of_own_loss") or 0) > ALLOWED)
    return (
        f"Of the {len(best)} causal language models of transformers {transformers.__version__}, "
        f"{count['hidden states']} give the loss from hidden states, {count['logits']} from full logits, "
        f"{count['refused']} are refused and {count['not compared']} were not compared; the models have about two "
        f"layers and random weights. The largest relative error with respect to the definition is {loss:.0e} for the "
        f"loss and {gradient:.0e} for its gradient. At weight 0, the loss is the model's own except for "
        f"{len(unshifted)} classes: {', '.join(unshifted)}."
    )


if __name__ == "__main__":
    main()
