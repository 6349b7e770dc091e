"""What is seen of a batch is what the training did with it, and leaves no trace."""

import gc
import weakref

import numpy as np
import pytest
import torch
from models import save_tiny, tiny_model
from trainers import make_trainer, rows_of
from transformers import TrainerCallback

from learndyn.errors import BadInput
from learndyn.forces.direction import norm, plus, scaled
from learndyn.forces.explain import Gradients
from learndyn.forces.gradients import TokenLogps
from learndyn.measure.load import load_model, load_tokenizer
from learndyn.measure.score import Scorer
from learndyn.probes.tokenize import TokenizedPair
from learndyn.train import batch_watch
from learndyn.train.batch_watch import BatchWatch, TrainingForward


RAW = {"max_grad_norm": 0.0, "max_steps": 2}
"""Without clipping: what the optimizer is given is what the backward pass made."""

EXACT, CLOSE = 1e-6, 1e-2


class Watching(TrainerCallback):
    """Watches every update, and keeps what it sees beside the optimizer's gradient."""

    def __init__(self) -> None:
        self.found: list[Gradients] = []
        self.given: list[dict[str, torch.Tensor]] = []
        self.watch: BatchWatch | None = None

    def on_step_begin(self, args, state, control, **kwargs):
        if self.watch is None:
            self.watch = BatchWatch(kwargs["model"])
        self.watch.begin()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        assert self.watch is not None
        model = kwargs["model"]
        self.watch.end()
        kept = {
            n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
        }
        self.given.append(kept)
        random = torch.get_rng_state()
        pair = TokenizedPair((5, 6), (7,), False, True)
        reader = TokenLogps.of(Scorer.attach(model, [pair]))
        method = type(args).__name__.removesuffix("Config").lower()
        self.found.append(self.watch.gradients(reader, method, 5e-2))
        assert torch.equal(torch.get_rng_state(), random)
        assert all(
            torch.equal(p.grad, kept[n])
            for n, p in model.named_parameters()
            if n in kept
        )

    def miss(self, step: int) -> float:
        """How far pull + push is from the gradient, as a share of it."""
        found, given = self.found[step], self.given[step]
        whole = plus(found.pull, found.push)
        assert whole.keys() == given.keys()
        rest = plus(given, scaled(whole, -1.0))
        return norm(rest.values()) / norm(given.values())


def watched(method, folder, out, **settings) -> Watching:
    callback = Watching()
    make_trainer(method, folder, out, (callback,), **{**RAW, **settings}).train()
    assert len(callback.found) == 2
    return callback


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("seen") / "model", "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Its dropout is on, where a trainer does not turn it off."""
    return save_tiny(tmp_path_factory.mktemp("seen") / "model", "gpt2")


ACCUMULATED = {"gradient_accumulation_steps": 2}
CASES = {
    "dpo": {},
    "dpo-accumulated": ACCUMULATED,
    "dpo-bf16": {"bf16": True},
    "dpo-checkpointed": {"activation_checkpointing": True},
    "dpo-lora": {"lora": True},
    "dpo-all": {
        "lora": True,
        "bf16": True,
        "activation_checkpointing": True,
        **ACCUMULATED,
    },
    "sft": {},
    "kto": {},
    "grpo": {},
    "plain": {},
    "plain-accumulated": ACCUMULATED,
}


# TRL calls transformers by names that will go
OLD_NAMES = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_(en|dis)able` is deprecated:FutureWarning"
)


@OLD_NAMES
@pytest.mark.parametrize("case", CASES)
def test_pull_and_push_are_the_gradient_that_the_optimizer_gets(folder, tmp_path, case):
    method = case.split("-")[0]
    callback = watched(method, folder, tmp_path, **CASES[case])
    for step, found in enumerate(callback.found):
        assert callback.miss(step) < EXACT
        if method == "sft":  # one sign: the same sums, in the same order
            assert callback.miss(step) == 0
        assert norm(found.pull.values()) > 0
        lowers = method in ("dpo", "kto", "grpo")
        assert (norm(found.push.values()) > 0) == lowers
        assert found.note == ""
        assert found.batch is not None
        assert len(found.batch.pairs) == {"dpo": 4}.get(method, 2) * CASES[case].get(
            "gradient_accumulation_steps", 1
        )


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16-autocast"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_dropout_is_drawn_again_as_it_was(gpt2, tmp_path, method, bf16):
    more = {"disable_dropout": False} if method == "dpo" else {}
    callback = watched(method, gpt2, tmp_path, bf16=bf16, **more)
    for step, found in enumerate(callback.found):
        assert callback.miss(step) < EXACT
        assert found.batch is None  # the plain model has other numbers
        assert "dropout" in found.note


def test_a_loss_within_an_autocast_forward_is_seen_too(folder, tmp_path):
    # accelerate hands out a float32 copy of the logits, and the loss has read others
    callback = watched("plain", folder, tmp_path, bf16=True)
    for step, found in enumerate(callback.found):
        assert callback.miss(step) < CLOSE  # dL/dz itself was rounded to bfloat16
        assert found.batch is not None
        assert (found.batch.push < 0).all()


def test_the_rows_of_a_dpo_batch_have_their_roles_and_texts(folder, tmp_path):
    callback = watched("dpo", folder, tmp_path, **ACCUMULATED)
    batch = callback.found[0].batch
    assert batch is not None
    assert batch.roles == ("chosen", "chosen", "rejected", "rejected") * 2
    tokenizer = load_tokenizer(folder)
    rows = [(r["prompt"], r["chosen"], r["rejected"]) for r in rows_of("dpo")]
    texts = {"chosen": set(), "rejected": set()}
    for prompt, chosen, rejected in rows:
        texts["chosen"].add((prompt, chosen + tokenizer.eos_token))
        texts["rejected"].add((prompt, rejected + tokenizer.eos_token))
    for pair, role in zip(batch.pairs, batch.roles, strict=True):
        decoded = tuple(map(tokenizer.decode, (pair.prompt_ids, pair.response_ids)))
        assert decoded in texts[role]
    raised = np.array([role == "chosen" for role in batch.roles])[batch.example]
    assert (batch.push[raised] < 0).all()
    assert (batch.push[~raised] > 0).all()


def step_of(model, watch: BatchWatch, loss_of, *args, **kwargs) -> list[torch.Tensor]:
    """One forward and backward pass that is watched; the gradient."""
    model.zero_grad()
    watch.begin()
    loss_of(model(*args, **kwargs)).backward()
    watch.end()
    return [p.grad.clone() for p in model.parameters()]


def next_logps(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    logp = logits[:, :-1].log_softmax(-1)
    return logp.gather(-1, ids[:, 1:, None]).squeeze(-1)


IDS = torch.tensor([[5, 9, 11, 40, 7, 3], [8, 2, 77, 30, 12, 4]])


@pytest.mark.parametrize("named", [True, False], ids=["by-name", "by-place"])
def test_push_is_the_derivative_by_each_log_probability(named):
    model = tiny_model("llama", torch.float64)
    weights = torch.randn(IDS[:, 1:].shape, dtype=torch.float64)
    kept = []

    def loss_of(output):
        logp = next_logps(output.logits, IDS)
        logp.retain_grad()
        kept.append(logp)
        return (weights * logp).sum() + logp.square().sum() / 50

    watch = BatchWatch(model)
    inputs = ((), {"input_ids": IDS}) if named else ((IDS,), {})
    given = step_of(model, watch, loss_of, *inputs[0], **inputs[1])
    torch.testing.assert_close(
        watch.forwards[0].push, kept[0].grad, rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(watch.forwards[0].logp, kept[0].detach())
    found = gradients_of(model, watch)
    whole = plus(found.pull, found.push)
    torch.testing.assert_close(list(whole.values()), given, rtol=1e-9, atol=1e-12)
    raised = kept[0].grad.clamp(max=0)
    alone = (raised * next_logps(model(IDS).logits, IDS)).sum()
    pull = torch.autograd.grad(alone, list(model.parameters()))
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(list(found.pull.values()), list(pull), **close)
    assert 0 < norm(found.pull.values()) < norm(given)


def gradients_of(model, watch: BatchWatch) -> Gradients:
    reader = TokenLogps.of(
        Scorer.attach(model, [TokenizedPair((5,), (7,), False, True)])
    )
    return watch.gradients(reader, "", 1e-3)


def test_what_a_loss_asks_of_other_tokens_is_left_over():
    model = tiny_model("llama", torch.float64)

    def smoothed(output):
        everywhere = output.logits[:, :-1].log_softmax(-1)
        return -next_logps(output.logits, IDS).mean() - 2 * everywhere.mean()

    watch = BatchWatch(model)
    given = step_of(model, watch, smoothed, IDS)
    found = gradients_of(model, watch)
    rest = [g - p for g, p in zip(given, found.pull.values(), strict=True)]
    assert 0.01 < norm(rest) / norm(given) < 0.5
    # The nearest push leaves nothing in its own direction.
    output = model(IDS)
    (asked,) = torch.autograd.grad(smoothed(output), [output.logits])
    pi = output.logits[:, :-1].detach().softmax(-1)
    steer = torch.nn.functional.one_hot(IDS[:, 1:], pi.shape[-1]) - pi
    left = asked[:, :-1] - watch.forwards[0].push[..., None] * steer
    assert (left * steer).sum(-1).abs().max() < 1e-12


def test_forwards_without_a_gradient_and_unused_ones_count_for_nothing():
    model = tiny_model("llama", torch.float64)
    watch = BatchWatch(model)
    watch.begin()
    with torch.no_grad():
        model(IDS)
    model(IDS)  # a gradient could flow, and does not
    watch.end()
    with pytest.raises(BadInput, match="does not read the log-probabilities"):
        gradients_of(model, watch)


def test_logits_are_free_once_a_batch_is_done():
    model = tiny_model("llama")
    watch = BatchWatch(model)
    kept = []

    def loss_of(output):
        kept.append(weakref.ref(output.logits))
        return -next_logps(output.logits, IDS).mean()

    gc.disable()  # by their count alone, and not when the collector happens to come
    try:
        step_of(model, watch, loss_of, IDS)
        assert kept[0]() is None
    finally:
        gc.enable()
    shapes = [tuple(x.shape) for x in gc.get_objects() if type(x) is torch.Tensor]
    assert (*IDS.shape, model.config.vocab_size) not in shapes


def test_an_error_in_a_hook_is_kept_from_the_training(monkeypatch):
    model = tiny_model("llama")
    loss_of = lambda output: -next_logps(output.logits, IDS).mean()  # noqa: E731
    plain = step_of(model, BatchWatch(model), loss_of, IDS)

    def fail(*_, **__):
        raise RuntimeError("no room")

    for place in ("_logp_of", "_push_reader", "_on_gradient"):
        with monkeypatch.context() as patch:
            patch.setattr(batch_watch, place, fail)
            watch = BatchWatch(model)
            given = step_of(model, watch, loss_of, IDS)
        assert all(torch.equal(a, b) for a, b in zip(plain, given, strict=True))
        with pytest.raises(BadInput, match="not understood: RuntimeError: no room"):
            gradients_of(model, watch)
    watch.begin()
    watch.end()
    assert watch.trouble == ""  # another update is another chance


def test_watching_leaves_no_hook_and_the_models_mode_as_it_is():
    model = tiny_model("gpt2")  # with dropout
    model.train()
    watch = BatchWatch(model)
    loss_of = lambda output: -next_logps(output.logits, IDS).mean()  # noqa: E731
    given = step_of(model, watch, loss_of, IDS)
    watch.begin()
    watch.begin()
    watch.end()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    watch = BatchWatch(model)
    given = step_of(model, watch, loss_of, IDS)
    model.eval()  # as another callback may leave it
    model.transformer.h[0].train()
    flags = [module.training for module in model.modules()]
    torch.rand(3)  # training has gone on
    random = torch.get_rng_state()
    found = gradients_of(model, watch)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == flags
    rest = [g - p for g, p in zip(given, found.pull.values(), strict=True)]
    assert norm(rest) < EXACT * norm(given)
    assert all(
        torch.equal(p.grad, g) for p, g in zip(model.parameters(), given, strict=True)
    )


def test_half_precision_parts_still_sum_to_the_whole():
    model = tiny_model("llama").bfloat16()
    weights = torch.randn(IDS[:, 1:].shape)
    watch = BatchWatch(model)
    given = step_of(
        model, watch, lambda o: (weights * next_logps(o.logits.float(), IDS)).sum(), IDS
    )
    found = gradients_of(model, watch)
    whole = plus(found.pull, found.push)
    rest = [g.float() - w for g, w in zip(given, whole.values(), strict=True)]
    assert norm(rest) < CLOSE * norm(given)
    assert norm(found.pull.values()) > 0
    assert norm(found.push.values()) > 0


def test_what_a_gradient_scaler_multiplied_is_divided_again(folder):
    from learndyn.train.recorder import _loss_scale

    class Scaled:
        class scaler:
            @staticmethod
            def get_scale():
                return 65536.0

    assert _loss_scale(object()) == 1.0
    watch = BatchWatch(load_model(folder))
    random, push = (torch.get_rng_state(), []), torch.full((1, 3), -0.5)
    watch.forwards = [TrainingForward((), {}, random, True, push, push * 65536)]
    watch.unscale(_loss_scale(Scaled()))
    torch.testing.assert_close(watch.forwards[0].push, push)
