"""docs/losses.md says what the code does, and its numbers are recomputed here."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from learndyn.forces.losses import LOSSES, Responses, loss_named
from learndyn.forces.losses.negative import negative_gradient


DOCS = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")

BETA = 0.1
"""Everywhere in the section on the printed residuals."""


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def code(text: str) -> str:
    return f"`{cell(text)}`"


def formulas() -> str:
    """Loss, push and source of each."""
    lines = ["| name | loss | push | paper |", "|---|---|---|---|"]
    for name, loss in LOSSES.items():
        lines.append(
            f"| `{name}` | {code(loss.equation)} | {code(loss.push_equation)} | "
            f"{cell(loss.paper)} |"
        )
    return "\n".join(lines)


def option_words(loss) -> str:
    given = {field.name: getattr(loss, field.name) for field in fields(loss)}
    words = [f"{k} {v:g}" if isinstance(v, float) else v for k, v in given.items()]
    return ", ".join(words) or "none"


def signs() -> str:
    """When each has a negative gradient, computed."""
    lines = [
        "| name | options | negative gradient (push > 0) | against TRL 1.16 |",
        "|---|---|---|---|",
    ]
    for name in LOSSES:
        loss = loss_named(name)
        found = negative_gradient(loss).in_words
        cells = [f"`{name}`", *map(cell, (option_words(loss), found, loss.differs))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_table_of_formulas_is_that_of_the_code():
    assert formulas() in DOCS


def test_the_table_of_signs_is_what_the_pushes_give():
    assert signs() in DOCS


# The printed residuals. One token each, vocabulary of 5: G is a multiple of pi - e_y.


def true_residuals(name, plus, minus, **options):
    """Multiples of (pi - e_y) in dL/dz, by autograd, at log-ratios `plus`, `minus`."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1], [3]])
    logp = logits.log_softmax(-1).gather(1, labels)[:, 0]
    ratios = torch.tensor([plus, minus], dtype=torch.float64)
    responses = Responses(
        n_tokens=torch.tensor([1, 1]),
        chosen=torch.tensor([True, False]),
        reference=logp.detach() - ratios,
    )
    loss = loss_named(name, **options)
    (gradient,) = torch.autograd.grad(loss.value(logp, responses), logits)
    error = (
        logits.detach()
        .softmax(-1)
        .scatter_add(1, labels, torch.full((2, 1), -1.0, dtype=torch.float64))
    )
    multiples = (gradient * error).sum(-1) / (error * error).sum(-1)
    assert torch.allclose(multiples[:, None] * error, gradient, atol=1e-12)
    return multiples.tolist()


def gap_at(plus, minus):
    """log pi(y+) - log pi(y-) in that model, for SLiC's hinge."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, generator=draw, dtype=torch.float64)
    logp = logits.log_softmax(-1)
    return float(logp[0, 1] - logp[1, 3])


def sigmoid(x):
    return float(torch.sigmoid(torch.tensor(x, dtype=torch.float64)))


def printed_ipo(plus, minus):
    """Eq. 17: Eq. 15's beta (1 - a), with a = h - 1/(2 beta); minus side subtracted."""
    strength = BETA * (1 - (plus - minus - 0.5 / BETA))
    return [strength, -strength]


def printed_slic(plus, minus):
    """Eq. 20: the indicator times Eq. 15's beta (1 - sigmoid(beta h))."""
    strength = BETA * (1 - sigmoid(BETA * (plus - minus)))
    return [strength, -strength]


def printed_sppo(plus, minus):
    """Eq. 22, with eta = 1/beta."""
    target = 0.5 / BETA
    return [2 * (plus - target), 2 * (minus + target)]


CASES = [
    ("ipo", "17", printed_ipo, (0.0, 0.0)),
    ("ipo", "17", printed_ipo, (1.0, -1.0)),
    ("ipo", "17", printed_ipo, (2.75, -2.75)),
    ("ipo", "17", printed_ipo, (4.0, -4.0)),
    ("slic", "20", printed_slic, (0.0, 0.0)),
    ("slic", "20", printed_slic, (1.0, -1.0)),
    ("sppo", "22", printed_sppo, (0.0, 0.0)),
    ("sppo", "22", printed_sppo, (2.0, -3.0)),
]


def numbers() -> str:
    """Printed and true multiples side by side."""
    lines = [
        "| loss | Eq. | r⁺, r⁻ | printed, y⁺ | true, y⁺ | printed, y⁻ | true, y⁻ |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for name, equation, printed, (plus, minus) in CASES:
        options = {"delta": 5.0} if name == "slic" else {"beta": BETA}
        said, true = printed(plus, minus), true_residuals(name, plus, minus, **options)
        pairs = zip(said, true, strict=True)
        cells = " | ".join(f"{x + 0.0:.4g}" for pair in pairs for x in pair)
        lines.append(f"| {name} | {equation} | {plus:g}, {minus:g} | {cells} |")
    return "\n".join(lines)


def test_the_table_of_printed_and_true_residuals_is_what_autograd_gives():
    assert gap_at(0, 0) < 5.0  # so SLiC's hinge is active at delta 5
    assert numbers() in DOCS


def test_ipo_as_printed_points_the_wrong_way_between_5_and_6():
    for h, same in [(4.9, True), (5.1, False), (5.9, False), (6.1, True)]:
        said, true = printed_ipo(h, 0.0), true_residuals("ipo", h, 0.0, beta=BETA)
        assert (said[0] * true[0] > 0) == same


def test_slic_pushes_with_1_whatever_the_margin_to_the_reference():
    for plus in (-20.0, 0.0, 20.0):
        found = true_residuals("slic", plus, 0.0, delta=5.0)
        assert found == pytest.approx([1.0, -1.0])


def test_the_regulariser_of_slic_is_on_its_own_target_alone():
    plain = true_residuals("slic", 0.0, 0.0, delta=5.0)
    more = true_residuals("slic", 0.0, 0.0, delta=5.0, regularise=0.25)
    change = [b - a for a, b in zip(plain, more, strict=True)]
    assert change == pytest.approx([0.25, 0.0])


@pytest.mark.parametrize("plus", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("minus", [-7.0, 0.0, 2.0])
def test_sppo_as_printed_is_minus_the_gradient(plus, minus):
    true = true_residuals("sppo", plus, minus, beta=BETA)
    assert printed_sppo(plus, minus) == pytest.approx([-x for x in true])


def step_of_sppo(lr=1e-4):
    """Change of both log-probabilities in one SGD step from the reference."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, generator=draw, dtype=torch.float64, requires_grad=True)

    def logp():
        return logits.log_softmax(-1)[[0, 1], [1, 3]]

    responses = Responses(
        n_tokens=torch.tensor([1, 1]),
        chosen=torch.tensor([True, False]),
        reference=logp().detach(),
    )
    before = logp().detach()
    loss_named("sppo", beta=BETA).value(logp(), responses).backward()
    with torch.no_grad():
        logits -= lr * logits.grad
    return (logp().detach() - before).tolist()


def test_one_step_of_sppo_lowers_the_rejected():
    plus, minus = step_of_sppo()
    assert plus > 0 > minus
    sentence = f"log π(y⁺) changes by {plus:+.4f} and log π(y⁻) by {minus:+.4f} nats"
    assert sentence in " ".join(DOCS.split())


def test_the_example_prints_what_it_says(capsys):
    example = DOCS.split("```python\n")[1].split("```")[0]
    exec(example, {})
    printed = capsys.readouterr().out.strip()
    assert f"# {printed}\n" in example
