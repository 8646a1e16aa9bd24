"""A causal language model whose forward ends in the loss: its head gets hidden states and never makes logits.

For one forward the head's own ``forward`` is replaced by the fused loss, and the model's outputs carry the loss instead
of logits. The loss is computed inside of the head's call and leaves through the model's outputs, so the hooks of
DistributedDataParallel, FSDP and DeepSpeed gather its weight and see its gradient as ever.

What turns products into logits is found from the model: the bias of the head, and numbers of the configuration that
may be scale or cap. They are used only if the head's results are those products on a batch, and the model makes of
numbers of all sizes, put in the place of these results, the logits that scale and cap make of them. Logits of the batch
alone would not tell: those of a model that has learned nothing are so small that no cap shows.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from matrix_ssl.llm.head import Head, effective_rows, find_head, mergeable

_POSITIONS = 8  # whose logits are compared, where the model can leave out the others
_SCALES = ("logit", "lm_head", "output_multiplier")  # parts of names in a configuration
_CAPS = ("cap",)
# relative error of products that counts as rounding, by their dtype: that of the products, and of TF32 on a GPU
_ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_TF32 = 4e-3
_SIZES = (-1.0, 2.0)  # powers of ten of the numbers that are put in the place of the head's results
_ROUNDINGS = 4  # of a number, in what makes a logit of it


class HeadForm(NamedTuple):
    """logits = cap(scale · (hidden @ rowsᵀ + bias)); the bias is the module's own."""

    scale: float = 1.0
    softcap: float | None = None


Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # the loss of hidden states, rows and bias of the head


def owner_of_head(model: Any) -> Any:
    """The causal model whose forward calls the head, also inside of peft's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def ending_in(model: Any, compute: Compute) -> Iterator[None]:
    """Within the block the forward of a model (not one wrapped for several processes) has ``compute``'s loss."""
    owner, head, results = owner_of_head(model), find_head(model), []

    def loss_of(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        loss = compute(hidden, *effective_rows(head))
        return loss * loss.new_ones(1, 1, 1)  # FSDP wants no view

    # what the other hooks made of the result: those of DeepSpeed tie its gradient to the gathering of the weight
    kept = head.register_forward_hook(lambda module, inputs, output: results.append(output))
    forward = owner.forward

    def forward_with_loss(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        (loss,) = results
        others = {key: value for key, value in outputs.items() if key not in ("loss", "logits")}
        return type(outputs)(loss=loss.sum(), **others)

    with _replaced(head, loss_of), _replaced(owner, forward_with_loss):
        try:
            yield
        finally:
            kept.remove()


@torch.no_grad()
def find_form(model: Any, wrapped: Any, inputs: dict[str, Any]) -> tuple[HeadForm | None, str]:
    """The form of a model's head, proved on a batch, or None and the reason why its logits cannot be replaced.

    Args:
        model: the model as it is.
        wrapped: the model that is called, which may be wrapped for several processes.
        inputs: a batch, without labels. Random numbers that the forward draws are not used up.
    """
    owner, head = owner_of_head(model), find_head(model)
    if not mergeable(head):
        return None, "its head has an adapter that is not a sum of products"
    seen: list[tuple[float, Tensor]] = []

    def compare(module: Any, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
        rows, bias = effective_rows(head)
        if rows.ndim != 2 or not rows.is_floating_point() or arguments[0].shape[-1] != rows.shape[1]:
            return None
        hidden, dtype = arguments[0].flatten(0, -2), output.dtype if output.dtype == torch.float64 else torch.float32
        if torch.is_autocast_enabled(hidden.device.type):
            hidden, rows = (x.to(torch.get_autocast_dtype(hidden.device.type)) for x in (hidden, rows))
        with torch.autocast(hidden.device.type, enabled=False):
            products = Head.of(rows, dtype, bias=bias).logits(hidden)
        seen.append((_error(products.view(output.shape), output), _numbers_of_all_sizes(output)))
        return seen[-1][1]

    few = (
        {"logits_to_keep": _POSITIONS} if "logits_to_keep" in inspect.signature(type(owner).forward).parameters else {}
    )
    devices = [x.device for x in inputs.values() if isinstance(x, Tensor) and x.is_cuda][:1]
    forward, calls = owner.forward, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return forward(*args, **kwargs)

    hook = head.register_forward_hook(compare, prepend=True)  # before the weight is spread over processes again
    try:
        with _replaced(owner, counted), torch.random.fork_rng(devices=devices):
            outputs = wrapped(**inputs, **few)
    finally:
        hook.remove()
    if not calls:  # as of peft's adaption prompts
        return None, "its forward is kept elsewhere and cannot be replaced"
    logits = getattr(outputs, "logits", None)
    if not hasattr(outputs, "items") or not isinstance(logits, Tensor):
        return None, "its forward returns no logits by name"
    if len(seen) != 1 or seen[0][1].shape != logits.shape:
        return None, "its logits are not one product with the weight of its head"
    error, numbers = seen[0]
    if not error <= max(_ROUNDING.get(numbers.dtype, 0.0), _TF32 if logits.is_cuda else 0.0):  # a NaN is no proof
        return None, f"what its head gives differs from products with its weight by {error:.1g}"
    form, error = _match(numbers, logits, owner.config)
    if not error <= _ROUNDINGS * max(torch.finfo(dtype).eps for dtype in (numbers.dtype, logits.dtype)):
        return None, f"its logits differ from scaled and capped products with its head by {error:.1g}"
    return form, ""


def _numbers_of_all_sizes(results: Tensor) -> Tensor:
    """Numbers of both signs in the shape of the head's results."""
    sizes = torch.logspace(*_SIZES, results.shape[-1], device=results.device)
    sizes[1::2] *= -1
    return sizes.to(results.dtype).expand(results.shape).clone()


def _error(values: Tensor, expected: Tensor) -> float:
    """The relative error of values, all together."""
    expected = expected.to(values.dtype)
    norm = torch.linalg.vector_norm(expected).clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.linalg.vector_norm(values - expected) / norm)


def _match(numbers: Tensor, logits: Tensor, config: Any) -> tuple[HeadForm, float]:
    """The scale and the cap of the configuration that make logits of numbers best, and their largest relative error."""
    known = _numbers(config.get_text_config())
    scales = {1.0} | {y for name, x in known if any(part in name for part in _SCALES) for y in (x, 1 / x)}
    caps = {None} | {x for name, x in known if any(part in name for part in _CAPS) and x > 0}
    numbers = numbers.to(torch.float64 if numbers.dtype == torch.float64 else torch.float32)
    errors = {}
    for form in (HeadForm(scale, cap) for scale in scales for cap in caps):
        z = numbers * form.scale
        if form.softcap is not None:
            z = form.softcap * torch.tanh(z / form.softcap)
        errors[form] = float(((z - logits) / z).abs().max())
    best = min(errors, key=lambda form: errors[form])
    return best, errors[best]


def _numbers(config: Any) -> list[tuple[str, float]]:
    """The numbers of a configuration that are not zero, by name."""
    return [
        (name, float(value)) for name, value in config.to_dict().items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value
    ]  # fmt: skip


@contextmanager
def _replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """A module with a different forward, until the block ends."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
