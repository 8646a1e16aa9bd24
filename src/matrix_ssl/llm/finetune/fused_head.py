"""A causal language model whose forward ends in the loss: its head receives hidden states and never computes logits.

For one forward, the head's own ``forward`` is replaced by the fused loss, and the model's outputs carry the loss
instead of logits. The loss is computed inside the head's call and returned through the model's outputs, so the hooks of
DistributedDataParallel, FSDP and DeepSpeed gather the head's weight and see its gradient as usual.

What turns products into logits is found from the model: the bias of the head, and numbers in the configuration that
may be a scale or a cap. They are used only if, on a batch, the head's results equal those products, and if the model
turns numbers of all sizes, substituted for these results, into the logits that scale and cap would give. The logits of
the batch alone would not suffice: in a model that has learned nothing they are too small for any cap to show.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from matrix_ssl.llm.head import Head, effective_rows, find_head, mergeable

_POSITIONS = 8  # whose logits are compared, if the model can leave out the others
_SCALES = ("logit", "lm_head", "output_multiplier")  # parts of names in a configuration
_CAPS = ("cap",)
# relative error of products that counts as rounding: that of their dtype, and on a GPU that of TF32
_ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_TF32 = 4e-3
_SIZES = (-1.0, 2.0)  # powers of ten of the numbers substituted for the head's results
_ROUNDINGS = 4  # of a number on its way to a logit


class HeadForm(NamedTuple):
    """logits = cap(scale · (hidden @ rowsᵀ + bias)); the bias is the module's own."""

    scale: float = 1.0
    softcap: float | None = None


Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # the loss of hidden states, rows and bias of the head


def owner_of_head(model: Any) -> Any:
    """The causal model whose forward calls the head, also inside a peft model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def ending_in(model: Any, compute: Compute) -> Iterator[None]:
    """Within the block, the forward of a model (not one wrapped for several processes) returns ``compute``'s loss."""
    owner, head, results = owner_of_head(model), find_head(model), []

    def loss_of(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        loss = compute(hidden, *effective_rows(head))
        return loss * loss.new_ones(1, 1, 1)  # FSDP does not accept a view

    # the result after the other hooks: those of DeepSpeed tie its gradient to the gathering of the weight
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
    """The form of a model's head, verified on a batch, or None and the reason why its logits cannot be replaced.

    Args:
        model: the model itself.
        wrapped: the model that is called, which may be wrapped for several processes.
        inputs: a batch, without labels. The state of the random number generators is restored after the forward.
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

    hook = head.register_forward_hook(compare, prepend=True)  # before the weight is sharded again
    try:
        with _replaced(owner, counted), torch.random.fork_rng(devices=devices):
            outputs = wrapped(**inputs, **few)
    finally:
        hook.remove()
    if not calls:  # as with peft's adaption prompts
        return None, "its forward is kept elsewhere and cannot be replaced"
    logits = getattr(outputs, "logits", None)
    if not hasattr(outputs, "items") or not isinstance(logits, Tensor):
        return None, "its forward returns no logits by name"
    if len(seen) != 1 or seen[0][1].shape != logits.shape:
        return None, "its logits are not one product with the weight of its head"
    error, numbers = seen[0]
    if not error <= max(_ROUNDING.get(numbers.dtype, 0.0), _TF32 if logits.is_cuda else 0.0):  # NaN proves nothing
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
    """The relative error of all values together."""
    expected = expected.to(values.dtype)
    norm = torch.linalg.vector_norm(expected).clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.linalg.vector_norm(values - expected) / norm)


def _match(numbers: Tensor, logits: Tensor, config: Any) -> tuple[HeadForm, float]:
    """The scale and cap from the configuration that best turn numbers into logits, and their largest relative error."""
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
    """The non-zero numbers of a configuration, with their names."""
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
