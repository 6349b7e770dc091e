"""All claims and figures about finetuned models, in the order of the paper."""

from collections.abc import Callable, Sequence

from learndyn.diagnose.paths import GREEDY
from learndyn.paper.claims import Claim, claims_of
from learndyn.paper.figures import PaperFigure
from learndyn.paper.finetuning import (
    dpo as paper_dpo,
    extend as paper_exam,
    extend as paper_extend,
    learning_one_kind as paper_heatmap,
    learning_one_kind as paper_proxies,
    sft as paper_sft,
)
from learndyn.paper.finetuning.dpo import DPO_STATEMENTS
from learndyn.paper.finetuning.extend import EXTEND_STATEMENTS
from learndyn.paper.finetuning.recorded import Recorded, learnt_by
from learndyn.paper.finetuning.sft import SFT_STATEMENTS
from learndyn.show.chart import Chart


_Draw = Callable[[Sequence[Recorded], int], Chart]

_PROBED = "Mean over the probed training prompts."


def paper_figures(seeds: Sequence[Recorded]) -> list[PaperFigure]:
    """Every figure that some seed's runs can fill, in the paper's order."""
    figures = [*_of_sft(seeds), *_of_dpo(seeds), *_of_extend(seeds), *_of_learnt(seeds)]
    graded = [one for one in seeds if one.right]
    if graded:
        about = "Graded by code: the right facts, in a grammatical sentence, politely."
        figures.append(_figure("table_1", "Table 1", paper_exam._exam, graded, about))
    return [figure for figure in figures if not figure.is_empty]


def _of_sft(seeds: Sequence[Recorded]) -> list[PaperFigure]:
    there = _with(seeds, "sft")
    figures = []
    if there:
        figures.append(_groups("sft_groups", "Figure 3", "sft", there))
    if _with(there, "sft", "irrelevant_train"):
        there = _with(there, "sft", "irrelevant_train")
        draw: _Draw = paper_sft.hallucination
        figures.append(
            _figure("sft_hallucination", "Section 4.1", draw, there, _PROBED)
        )
    both = [one for one in _with(seeds, "sft") if _splits(one, "sft") == 2]
    if both:
        figures.append(_held_out("sft_train_and_test", "sft", both))
    return figures


def _of_dpo(seeds: Sequence[Recorded]) -> list[PaperFigure]:
    there = _with(seeds, "dpo")
    if not there:
        return []
    figures = [
        _figure(name, paper, draw, there, _PROBED)
        for name, paper, draw in (
            ("dpo_chosen_and_rejected", "Figure 4", paper_dpo._chosen_and_rejected),
            ("dpo_rephrases", "Figure 4", paper_dpo.rephrases),
            ("dpo_irrelevant_and_random", "Figure 4", paper_dpo._irrelevant_and_random),
            ("dpo_where_the_mass_went", "Figures 4, 9", paper_dpo._where_the_mass_went),
            ("dpo_squeeze_index", "Section 3.3", paper_dpo._squeeze_index),
        )
    ]
    both = [one for one in there if _splits(one, "dpo") == 2]
    if both:
        figures.append(_held_out("dpo_held_out", "dpo", both))
    policies = _with(there, "on-policy")
    if policies:
        about = (
            "On-policy: each rejected answer of the training pairs was sampled from "
            "the model after SFT. The probes are the same in both."
        )
        draw = paper_dpo._on_policy
        figures.append(_figure("dpo_on_policy", "Section 3.3", draw, policies, about))
    return figures


def _of_extend(seeds: Sequence[Recorded]) -> list[PaperFigure]:
    figures = []
    first = _with(seeds, "extend-sft")
    if first:
        about = f"{_PROBED} Extend trains on both answers, so on twice as many updates."
        draw: _Draw = paper_extend.extend_sft
        figures.append(_figure("extend_sft", "Figure 5", draw, first, about))
        figures.append(
            _groups("extend_sft_groups", "Figures 3, 5", "extend-sft", first)
        )
    both = _with(_with(seeds, "dpo"), "extend-dpo")
    if both:
        for name, draw in (
            ("extend_dpo", paper_extend.extend_dpo),
            ("extend_matched", paper_extend.extend_matched),
        ):
            figures.append(_figure(name, "Figure 5", draw, both, _PROBED))
    return figures


def _of_learnt(seeds: Sequence[Recorded]) -> list[PaperFigure]:
    figures = []
    sized = [one for one in seeds if one.vocabulary is not None]
    if sized and paper_proxies._roles_of(sized):
        for name, signs in (("lbk", False), ("sign_delta", True)):
            draw = _proxy(signs)
            about = "As in the authors' notebook, which is not what the paper defines."
            figures.append(_figure(name, "Figure 8", draw, sized, about))
    if len(learnt_by(seeds)) > 1:
        for name, normalised in (("heat_map", True), ("heat_map_nats", False)):
            draw = _map(normalised)
            about = "Ten epochs of SFT on one kind of answer to the probed prompts."
            figures.append(_figure(name, "Appendix D", draw, seeds, about))
    return figures


def _figure(
    name: str, paper: str, draw: _Draw, seeds: Sequence[Recorded], about: str
) -> PaperFigure:
    return PaperFigure(name, paper, lambda width: draw(seeds, width), about)


def _groups(name: str, paper: str, role: str, seeds: Sequence[Recorded]) -> PaperFigure:
    def draw(those: Sequence[Recorded], width: int) -> Chart:
        return paper_sft._groups(those, role, width)

    return _figure(name, paper, draw, seeds, _PROBED)


def _held_out(name: str, role: str, seeds: Sequence[Recorded]) -> PaperFigure:
    kinds = ("chosen", GREEDY, "rejected", "irrelevant_train")
    about = "Solid: probed training prompts. Dashed: prompts never trained on."

    def draw(those: Sequence[Recorded], width: int) -> Chart:
        return paper_sft._held_out(those, role, kinds, width)

    return _figure(name, "Section 4, D_probtest", draw, seeds, about)


def _proxy(signs: bool) -> _Draw:
    return lambda seeds, width: paper_proxies._proxies(seeds, width, signs=signs)


def _map(normalised: bool) -> _Draw:
    return lambda seeds, width: paper_heatmap._heat_map(
        seeds, width, normalised=normalised
    )


def _with(
    seeds: Sequence[Recorded], role: str, kind: str | None = None
) -> list[Recorded]:
    """Seeds that have this run, with two observations, and this kind in it."""
    return [
        one
        for one in seeds
        if role in one.runs
        and len(one.runs[role].steps) > 1
        and (kind is None or kind in one.runs[role].kinds)
    ]


def _splits(one: Recorded, role: str) -> int:
    return len(set(one.runs[role].split_of.tolist()) & {"train", "test"})


_STATEMENTS = (*SFT_STATEMENTS, *DPO_STATEMENTS, *EXTEND_STATEMENTS)


def paper_claims(seeds: Sequence[Recorded]) -> tuple[Claim, ...]:
    """All statements about SFT, DPO and extend, in the paper's order."""
    return claims_of(_STATEMENTS, seeds)
