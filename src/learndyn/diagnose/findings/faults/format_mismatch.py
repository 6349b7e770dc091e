"""Are the answers in the format that the model was trained with?

A model that was finetuned on answers of a format ends them: before any update it gives
the end-of-text token at the end of such an answer a large probability. Preference
training begins from such a model. Where it does not expect an end there, the chat
template is another one (or none), or the SFT before it is missing.
"""

import math

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Advice, Finding
from learndyn.diagnose.numbers import counted, figures, signed


_EXPECTED = 0.01
"""Probability of end-of-text at the end of chosen before training, geometric mean, from
which on the model expects it. Small models trained on other formats gave 0.0001 to
0.0006, those trained on the same one 0.7 to 1.0."""

_BELOW = 2.0
"""Nats by which end-of-text must also be less likely than the tokens of chosen are on
average: a model that knows nothing of the answers at all does not fail at their end."""


class FormatMismatch(Finding):
    """Before training the model does not expect chosen to end where it ends."""

    name = "format_mismatch"
    section = "data"
    fault = (
        "The model does not know this format: its chat template is another one, or it "
        "was not finetuned (SFT) on such answers."
    )
    mend = Advice(
        "Render the prompts as the model was trained with them: give messages "
        "(role, content) instead of text, so that the trainer applies the tokenizer's "
        "chat template; or train on chosen with SFT first.",
        "The model does not expect these answers to end.",
    )

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None but for preference training with a reference, and where the run has no
        values per token or its answers no end-of-text."""
        run, endings = facts.trajectory, facts.endings
        info = run.run.info
        if info.family != "preference" or not info.has_reference or endings is None:
            return None
        if "chosen" not in run.kinds:
            return None
        rows = run.rows("chosen", facts.split)
        rows = rows[endings.ends[rows] & np.isfinite(endings.first[rows])]
        if len(rows) < 2:
            return None
        probability = math.exp(float(endings.first[rows].mean()))
        numbers = {"end_of_text": probability, "answers": len(rows)}
        level = float(np.nansum(run.columns["logp"][0, rows]))
        level /= float(run.n_tokens[rows].sum())
        if probability >= _EXPECTED or math.log(probability) > level - _BELOW:
            return None
        rendered = ""
        if "rendered" in run.probes.column_names:
            of = run.probes["rendered"].take(rows).to_pylist()
            rendered = " None is rendered by a chat template." if not any(of) else ""
        says = (
            f"At the end of {counted(len(rows), 'chosen answer')} it gives end-of-text "
            f"{figures(100 * probability, 2)} % before any update; a model that was "
            "trained on such answers ends most of them. Chosen begins at "
            f"{signed(level)} nats per token.{rendered}"
        )
        return cls("problem", says, numbers)
