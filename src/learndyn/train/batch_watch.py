"""What a trainer's own forwards and its loss did with a batch: watched, not touched.

An update is made of the training tokens' log-probabilities and of what the loss asks of
each, dL/dlogp. In every transformers or TRL trainer both pass through what the model's
forward returns: `log_probs` of TRL's fused head, or `logits` of the model's own. A hook
on the forward reads the one, a hook on its backward the other.

Afterwards the same forward runs again on the same inputs, with the same random states.
Its pullback of dL/dlogp is the training's own gradient, to the bit where the machine
repeats itself; the pullback of a part of dL/dlogp is the corresponding part.
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
from learndyn.measure.neutral import preserved_random_state
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

    Column t belongs to token t + 1.
    """
    logp = getattr(output, "log_probs", None)
    if logp is not None:
        return logp
    labels = _labels(inputs)
    columns = []
    # One row at a time: float32 logits of a whole batch can be larger than the model.
    for row, label in zip(output.logits, labels, strict=True):
        logits = row[:-1]
        # not `wide`, which detaches: the pullback runs through this function
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        own = logits.gather(-1, label.clamp(min=0)[:, None]).squeeze(-1)
        columns.append(own - logits.logsumexp(-1))
    return torch.stack(columns).masked_fill(labels == _IGNORED, 0.0)


def _on_gradient(tensor: Tensor, keep: Callable[[Tensor], None]) -> None:
    """Call `keep` with the gradient of what a loss reads, when it comes by.

    Under mixed precision accelerate hands out a float32 copy of the logits, while a
    loss within the forward has read the logits themselves: there both come together.
    """
    # On the node and not on the tensor: where the tensor is a float32 copy, nobody here
    # holds the one that it was made from.
    node, number = tensor.grad_fn, tensor.output_nr
    assert node is not None
    if node.name().startswith("ToCopyBackward"):
        node, number = node.next_functions[0]
        assert node is not None

    def hook(gradients: Any) -> None:
        # a node with several outputs has None for those that the loss does not read
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
    # TRL's head fills ignored positions with 0, a constant: what the loss's gradient
    # says of them moves nothing.
    ignored = logp.detach() == 0
    return lambda gradient: gradient.masked_fill(ignored, 0.0)


def _nearest(
    logits: Float[Tensor, "batch position vocab"],
    labels: Int[Tensor, "batch time"],
    gradient: Float[Tensor, "batch position vocab"],
) -> Float[Tensor, "batch time"]:
    """The c for which c (e_y - pi) is nearest to dL/dz.

    What a loss asks of other tokens (label smoothing) is left over.
    """
    columns = []
    for row, label in enumerate(labels):  # one at a time: each is as large as logits
        known = label.clamp(min=0)[:, None]
        steer = -wide(logits[row, :-1]).softmax(-1)
        steer.scatter_add_(-1, known, torch.ones_like(known, dtype=steer.dtype))
        # Where pi(y) is 1 to rounding e_y - pi is 0 and moves nothing: c = 0, not NaN.
        length = steer.square().sum(-1).clamp(min=1e-30)
        columns.append((wide(gradient[row, :-1]) * steer).sum(-1) / length)
    return torch.stack(columns).masked_fill(labels == _IGNORED, 0.0)


def _labels(inputs: dict[str, Any]) -> Int[Tensor, "batch time"]:
    """Of each position but the last, the token that comes next."""
    labels = inputs.get("labels")
    return (inputs["input_ids"] if labels is None else labels)[:, 1:]


@dataclass(eq=False)
class TrainingForward:
    """One forward of the training, in which a gradient was to flow."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: tuple[Tensor, list[Tensor]]
    """States of torch's generators before it: dropout draws from them."""
    training: bool
    """Whether the model was in training mode."""
    logp: Float[Tensor, "batch time"]
    """What it gave for each next token; column t belongs to token t + 1."""
    push: Float[Tensor, "batch time"] | None = None
    """dL/dlogp, once the backward pass has come by."""


class BatchWatch:
    """Watches a model's forwards between `begin` and `end`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.forwards: list[TrainingForward] = []
        self.trouble = ""
        """The first error in a hook; training never sees it."""
        self._random: tuple[Tensor, list[Tensor]] | None = None
        self._handles: list[Any] = []

    def begin(self) -> None:
        """Watch from now on; earlier forwards are forgotten."""
        self.end()
        self.forwards, self.trouble = [], ""
        self._handles = [
            self.model.register_forward_pre_hook(
                self._harmless(self._before), with_kwargs=True
            ),
            self.model.register_forward_hook(
                self._harmless(self._after), with_kwargs=True
            ),
        ]

    def end(self) -> None:
        """Watch no longer; the forwards so far stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def unscale(self, scale: float) -> None:
        """Undo what a gradient scaler multiplied the loss by."""
        for one in self.forwards:
            if one.push is not None:
                one.push = one.push / scale

    def _before(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        # Evaluation, generation and probing run without gradients: not in any update.
        if torch.is_grad_enabled():
            cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            self._random = (torch.get_rng_state(), cuda)

    def _after(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # taken, so that a forward without gradients does not get an older one's states
        random, self._random = self._random, None
        if random is None:
            return
        tensor = _read_by_loss(output)
        if tensor is None or not tensor.requires_grad:
            return
        inputs = _inputs_by_name(args, kwargs)
        with torch.no_grad():  # the training's graph must not grow by ours
            logp = _logp_of(output, inputs).detach()
        forward = TrainingForward(args, kwargs, random, self.model.training, logp)
        self.forwards.append(forward)
        push_of = _push_reader(output, inputs)

        def keep(gradient: Tensor) -> None:
            push = push_of(gradient)
            # two backward passes over one forward add up, as they do in p.grad
            forward.push = push if forward.push is None else forward.push + push

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
            BadInput: if no forward with a gradient passed by.
        """
        if self.trouble:
            raise BadInput(f"the training's forward was not understood: {self.trouble}")
        forwards = [one for one in self.forwards if one.push is not None]
        if not forwards:
            raise BadInput(
                "the loss does not read the log-probabilities or logits that the "
                "model's own forward returns, so it cannot be split into pull and push."
            )
        pull, push = self._by_sign(forwards)
        try:
            batch, expected = _batch(forwards, roles)
        except BadInput as error:
            return Gradients(pull, push, None, str(error))
        own = reader.on(batch.pairs).values()
        # A response may hold tokens that the loss ignores: they do not count.
        asked = batch.push != 0
        miss = float(np.abs(own - expected)[asked].mean())
        if not miss <= agrees:  # so written, NaN does not agree
            return Gradients(
                pull,
                push,
                None,
                f"training's log-probabilities differ by {miss:.2g} nats per token "
                "from those of the plain model (dropout, a temperature or packed "
                "rows): no split by training tokens.",
            )
        return Gradients(pull, push, batch)

    def _by_sign(
        self, forwards: list[TrainingForward]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Pull and push, which sum to the whole pullback.

        Push is the whole less pull: in half precision two pullbacks would not add up.
        """
        pushes = [one.push for one in forwards if one.push is not None]
        whole = self._pullback(forwards, pushes)
        nothing = {name: torch.zeros_like(part) for name, part in whole.items()}
        # SFT has pull alone: one backward pass is enough.
        lowers = any(bool((push > 0).any()) for push in pushes)
        if not lowers or not any(bool((push < 0).any()) for push in pushes):
            return (nothing, whole) if lowers else (whole, nothing)
        pull = self._pullback(forwards, [push.clamp(max=0) for push in pushes])
        return pull, {name: wide(part) - pull[name] for name, part in whole.items()}

    def _pullback(
        self, forwards: list[TrainingForward], asked: list[Tensor]
    ) -> dict[str, Tensor]:
        parameters = parameters_of(self.model)
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for one, push in zip(forwards, asked, strict=True):
            if not bool(push.any()):  # such as pairs beyond the margin of a hinge
                continue
            with _as_then(self.model, one), torch.enable_grad():
                output = self.model(*one.args, **one.kwargs)
                logp = _logp_of(output, _inputs_by_name(one.args, one.kwargs))
                # `grad`, never `backward`: p.grad is the training's. Unused are, for
                # one, experts to which no token of the batch was sent.
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
def _as_then(model: nn.Module, then: TrainingForward) -> Iterator[None]:
    """Within the block random states and mode are as they were at an earlier forward.

    With other dropout masks this would be another function than training's.
    """
    # Per module: a trainer may keep parts of a model, frozen ones, in eval mode.
    flags = {module: module.training for module in model.modules()}
    cpu, cuda = then.random
    with preserved_random_state():
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        # `train()` sets all modules alike, so it is called only where it must be
        if model.training != then.training:
            model.train(then.training)
        try:
            yield
        finally:
            for module, training in flags.items():
                module.training = training


def _batch(
    forwards: list[TrainingForward], roles: str
) -> tuple[Batch, Float[np.ndarray, " token"]]:
    """The training responses, and the log-probabilities that training had for them."""
    pairs: list[TokenizedPair] = []
    named: list[str] = []
    pushes: list[Float[np.ndarray, " token"]] = []
    known: list[Float[np.ndarray, " token"]] = []
    for one in forwards:
        given = _inputs_by_name(one.args, one.kwargs)
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if ids is None or one.push is None:
            raise BadInput("the trainer hands the model no token ids.")
        # TRL gives positions where it packs or flattens rows (padding_free).
        if given.get("position_ids") is not None:
            raise BadInput("rows of the batch may hold several packed sequences.")
        if one.push.shape != (ids.shape[0], ids.shape[1] - 1):
            raise BadInput("the log-probabilities are not one for each next token.")
        for row in range(len(ids)):
            real = np.ones(ids.shape[1], bool)
            if mask is not None:
                real = mask[row].cpu().numpy().astype(bool)
            push = one.push[row].double().cpu().numpy()
            match = _response(ids[row].cpu().numpy(), real, push)
            if match is None:
                continue  # the loss asks nothing of this row
            pair, span = match
            pairs.append(pair)
            pushes.append(push[span])
            known.append(one.logp[row].double().cpu().numpy()[span])
            named.append(_role(roles, row, len(ids), float(push.sum())))
    if not pairs:
        raise BadInput("the loss has no gradient at any training token.")
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
    # push t is about token t + 1
    first, last = int(asked[0]) + 1, int(asked[-1]) + 1
    prompt = tuple(ids[:first][real[:first]].tolist())  # less padding on the left
    response = tuple(ids[first : last + 1].tolist())
    return TokenizedPair(prompt, response, False, True), slice(first - 1, last)


def _role(method: str, row: int, rows: int, push: float) -> str:
    """TRL's batches of pairs hold the chosen responses first, then the rejected; KTO
    raises the desirable and lowers the others."""
    if method == "kto":
        return "desirable" if push < 0 else "undesirable"
    if method not in ("dpo", "ipo", "cpo", "simpo", "orpo"):
        return ""
    return "chosen" if row < rows // 2 else "rejected"
