"""What a trainer's own forwards and its loss did with a batch: watched, not touched.

An update is made of the training tokens' log-probabilities, and of what the loss asks
of each, dL/dlogp. In every transformers or TRL trainer both pass through what the
model's forward returns (see `seam`): a hook on the forward sees the one, a hook on its
backward the other.

Afterwards the same forward is run again on the same inputs, with the same random
states: its pullback of dL/dlogp is the training's own gradient, to the bit where the
machine repeats itself, and that of a part of dL/dlogp is that part of it.

Where a loss reads a model: at its log-probabilities, or at its logits.

TRL's fused head hands out `log_probs`, a model's own forward hands out `logits`. What
passes back through either says what the loss asks of each training token, dL/dlogp.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from learndyn.errors import BadInput
from learndyn.forces.batch import Batch
from learndyn.forces.direction import parameters_of
from learndyn.forces.explain import Gradients
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.optimizers import wide
from learndyn.measure.neutral import random_state_kept
from learndyn.probes.tokenize import TokenizedPair


_IGNORED = -100
"""Label of a position that no loss reads."""


def _inputs_by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a forward was given: every causal LM takes the token ids first."""
    return {"input_ids": args[0], **kwargs} if args else kwargs


def _read_by_loss(output: Any) -> Tensor | None:
    """Log-probabilities, or logits; None where a model hands out neither."""
    logp = getattr(output, "log_probs", None)
    return getattr(output, "logits", None) if logp is None else logp


def _logp_of(output: Any, inputs: dict[str, Any]) -> Float[Tensor, "batch time"]:
    """log pi of each next token, in nats, differentiable; 0 where there is no label.

    Column t is of token t + 1.
    """
    logp = getattr(output, "log_probs", None)
    if logp is not None:
        return logp
    labels = _labels(inputs)
    found = []
    for row, label in zip(output.logits, labels, strict=True):  # float32 is large
        logits = row[:-1]
        # not `wide`, which detaches
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        own = logits.gather(-1, label.clamp(min=0)[:, None]).squeeze(-1)
        found.append(own - logits.logsumexp(-1))
    return torch.stack(found).masked_fill(labels == _IGNORED, 0.0)


def _on_gradient(tensor: Tensor, keep: Callable[[Tensor], None]) -> None:
    """Call `keep` with the gradient of what a loss reads, when it comes by.

    Under mixed precision accelerate hands out a float32 copy of the logits, while a
    loss within the forward has read the logits themselves: there both come together.
    """
    node, number = tensor.grad_fn, tensor.output_nr
    assert node is not None
    if node.name().startswith("ToCopyBackward"):
        node, number = node.next_functions[0]
        assert node is not None

    def hook(gradients: Any) -> None:
        if gradients[number] is not None:
            keep(gradients[number].detach())

    node.register_prehook(hook)


def _push_reader(output: Any, inputs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """What makes dL/dlogp, laid out as `_logp_of`, of the gradient that comes by.

    It holds the forward's numbers without their graph: the graph is to hold it.
    """
    logp = getattr(output, "log_probs", None)
    if logp is None:
        return partial(_nearest, output.logits.detach(), _labels(inputs))
    ignored = logp.detach() == 0  # a constant there, gradient or not
    return lambda gradient: gradient.masked_fill(ignored, 0.0)


def _nearest(
    logits: Float[Tensor, "batch position vocab"],
    labels: Int[Tensor, "batch time"],
    gradient: Float[Tensor, "batch position vocab"],
) -> Float[Tensor, "batch time"]:
    """The c for which c (e_y - pi) is nearest to dL/dz.

    What a loss asks of other tokens (label smoothing) is left over.
    """
    found = []
    for row, label in enumerate(labels):  # one at a time: each is as large as logits
        known = label.clamp(min=0)[:, None]
        steer = -wide(logits[row, :-1]).softmax(-1)
        steer.scatter_add_(-1, known, torch.ones_like(known, dtype=steer.dtype))
        length = steer.square().sum(-1).clamp(min=1e-30)
        found.append((wide(gradient[row, :-1]) * steer).sum(-1) / length)
    return torch.stack(found).masked_fill(labels == _IGNORED, 0.0)


def _labels(inputs: dict[str, Any]) -> Int[Tensor, "batch time"]:
    """Of each position but the last, the token that comes next."""
    labels = inputs.get("labels")
    return (inputs["input_ids"] if labels is None else labels)[:, 1:]


@dataclass(eq=False)
class Seen:
    """One forward of the training, in which a gradient was to flow."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: tuple[Tensor, list[Tensor]]
    """States of torch's generators before it: dropout draws from them."""
    training: bool
    """Whether the model was in training mode."""
    logp: Float[Tensor, "batch time"]
    """What it gave for each next token; column t is of token t + 1."""
    push: Float[Tensor, "batch time"] | None = None
    """dL/dlogp, once the backward pass has come by."""


class BatchWatch:
    """Watches a model's forwards between `begin` and `end`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen: list[Seen] = []
        self.trouble = ""
        """The first error in a hook: it is kept from the training."""
        self._random: tuple[Tensor, list[Tensor]] | None = None
        self._handles: list[Any] = []

    def begin(self) -> None:
        """Watch from now on; what was seen before is forgotten."""
        self.end()
        self.seen, self.trouble = [], ""
        self._handles = [
            self.model.register_forward_pre_hook(
                self._harmless(self._before), with_kwargs=True
            ),
            self.model.register_forward_hook(
                self._harmless(self._after), with_kwargs=True
            ),
        ]

    def end(self) -> None:
        """Watch no longer; what was seen stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def unscale(self, scale: float) -> None:
        """Undo what a gradient scaler multiplied the loss by."""
        for one in self.seen:
            if one.push is not None:
                one.push = one.push / scale

    def _before(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            self._random = (torch.get_rng_state(), cuda)

    def _after(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        random, self._random = self._random, None
        if random is None:
            return
        tensor = _read_by_loss(output)
        if tensor is None or not tensor.requires_grad:
            return
        inputs = _inputs_by_name(args, kwargs)
        with torch.no_grad():
            logp = _logp_of(output, inputs).detach()
        seen = Seen(args, kwargs, random, self.model.training, logp)
        self.seen.append(seen)
        push_of = _push_reader(output, inputs)

        def keep(gradient: Tensor) -> None:
            push = push_of(gradient)
            seen.push = push if seen.push is None else seen.push + push

        _on_gradient(tensor, self._harmless(keep))

    def _harmless(self, hook: Callable[..., None]) -> Callable[..., None]:
        """The hook, which keeps its errors to itself: training must not see them."""

        def guarded(*args: Any) -> None:
            try:
                hook(*args)
            except Exception as error:
                self.trouble = self.trouble or f"{type(error).__name__}: {error}"

        return guarded

    def gradients(self, reader: TokenLogps, roles: str, agrees: float) -> Gradients:
        """The batch's gradient by the sign of its push.

        The model must stand where it stood in training. `reader` reads the training
        tokens once more, as probes are read: where that differs by more than `agrees`
        nats per token, they are not handed out.

        Raises:
            BadInput: if the batch was not seen.
        """
        if self.trouble:
            raise BadInput(f"the training's forward was not understood: {self.trouble}")
        seen = [one for one in self.seen if one.push is not None]
        if not seen:
            raise BadInput(
                "the loss does not read the log-probabilities or logits that the "
                "model's own forward returns: no split into pull and push."
            )
        pull, push = self._by_sign(seen)
        try:
            batch, expected = _batch(seen, roles)
        except BadInput as error:
            return Gradients(pull, push, None, str(error))
        own = reader.on(batch.pairs).values()
        asked = batch.push != 0
        miss = float(np.abs(own - expected)[asked].mean())
        if not miss <= agrees:
            return Gradients(
                pull,
                push,
                None,
                f"training's log-probabilities differ by {miss:.2g} nats per token "
                "from those of the plain model (dropout, a temperature or packed "
                "rows): no split by training tokens.",
            )
        return Gradients(pull, push, batch)

    def _by_sign(self, seen: list[Seen]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Pull and push. Their sum is the whole pullback, also in half precision, where
        two of them would not add up: what one is not, the other is."""
        pushes = [one.push for one in seen if one.push is not None]
        whole = self._pullback(seen, pushes)
        nothing = {name: torch.zeros_like(part) for name, part in whole.items()}
        lowers = any(bool((push > 0).any()) for push in pushes)
        if not lowers or not any(bool((push < 0).any()) for push in pushes):
            return (nothing, whole) if lowers else (whole, nothing)
        pull = self._pullback(seen, [push.clamp(max=0) for push in pushes])
        return pull, {name: wide(part) - pull[name] for name, part in whole.items()}

    def _pullback(self, seen: list[Seen], asked: list[Tensor]) -> dict[str, Tensor]:
        parameters = parameters_of(self.model)
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for one, push in zip(seen, asked, strict=True):
            if not bool(push.any()):
                continue
            with _as_then(self.model, one), torch.enable_grad():
                output = self.model(*one.args, **one.kwargs)
                logp = _logp_of(output, _inputs_by_name(one.args, one.kwargs))
                parts = torch.autograd.grad(
                    logp,
                    list(parameters.values()),
                    grad_outputs=push.to(logp),
                    allow_unused=True,
                )
            for name, part in zip(total, parts, strict=True):
                if part is not None:
                    total[name] += part
        return total


@contextmanager
def _as_then(model: nn.Module, then: Seen) -> Iterator[None]:
    """With the random states and the mode of an earlier forward; then as before."""
    flags = {module: module.training for module in model.modules()}
    cpu, cuda = then.random
    with random_state_kept():
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if model.training != then.training:
            model.train(then.training)
        try:
            yield
        finally:
            for module, training in flags.items():
                module.training = training


def _batch(seen: list[Seen], roles: str) -> tuple[Batch, Float[np.ndarray, " token"]]:
    """The training responses, and the log-probabilities that training had for them.

    Raises:
        BadInput: if the inputs are no token ids, or rows hold several sequences.
    """
    pairs: list[TokenizedPair] = []
    named: list[str] = []
    pushes: list[Float[np.ndarray, " token"]] = []
    known: list[Float[np.ndarray, " token"]] = []
    for one in seen:
        given = _inputs_by_name(one.args, one.kwargs)
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if ids is None or one.push is None:
            raise BadInput("the trainer hands the model no token ids.")
        if given.get("position_ids") is not None:
            raise BadInput("rows of the batch may hold several packed sequences.")
        if one.push.shape != (ids.shape[0], ids.shape[1] - 1):
            raise BadInput("the log-probabilities are not one for each next token.")
        for row in range(len(ids)):
            real = np.ones(ids.shape[1], bool)
            if mask is not None:
                real = mask[row].cpu().numpy().astype(bool)
            push = one.push[row].double().cpu().numpy()
            found = _response(ids[row].cpu().numpy(), real, push)
            if found is None:
                continue  # the loss asks nothing of this row
            pair, span = found
            pairs.append(pair)
            pushes.append(push[span])
            known.append(one.logp[row].double().cpu().numpy()[span])
            named.append(_role(roles, row, len(ids), float(push.sum())))
    if not pairs:
        raise BadInput("the loss asked nothing of any training token.")
    return (
        Batch(tuple(pairs), np.concatenate(pushes), tuple(named)),
        np.concatenate(known),
    )


def _response(
    ids: Int[np.ndarray, " time"],
    real: np.ndarray,
    push: Float[np.ndarray, " before"],
) -> tuple[TokenizedPair, slice] | None:
    """The stretch of a row that the loss asks something of; all before is prompt."""
    asked = np.flatnonzero(push)
    if not len(asked):
        return None
    first, last = int(asked[0]) + 1, int(asked[-1]) + 1
    prompt = tuple(ids[:first][real[:first]].tolist())
    response = tuple(ids[first : last + 1].tolist())
    return TokenizedPair(prompt, response, False, True), slice(first - 1, last)


def _role(method: str, row: int, rows: int, push: float) -> str:
    """TRL's batches of pairs hold the chosen responses first, then the rejected; KTO
    raises the desirable and lowers the others."""
    if method == "kto":
        return "desirable" if push < 0 else "undesirable"
    if method not in ("dpo", "cpo", "orpo"):
        return ""
    return "chosen" if row < rows // 2 else "rejected"
