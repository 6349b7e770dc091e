"""All claims and figures about finetuned models, in the order of the paper."""

from collections.abc import Callable, Sequence

from learndyn.diagnose.paths import GREEDY
from learndyn.paper.claims import Claim, claims_of
from learndyn.paper.figures import Plate
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
from learndyn.show.chart import Sheet


_Draw = Callable[[Sequence[Recorded], int], Sheet]

_PROBED = "Mean over the probed training prompts."


def paper_plates(seeds: Sequence[Recorded]) -> list[Plate]:
    """Every figure that some seed's runs can fill, in the paper's order."""
    plates = [*_of_sft(seeds), *_of_dpo(seeds), *_of_extend(seeds), *_of_learnt(seeds)]
    graded = [one for one in seeds if one.right]
    if graded:
        about = "Graded by code: the right facts, in a grammatical sentence, politely."
        plates.append(_plate("table_1", "Table 1", paper_exam._exam, graded, about))
    return [plate for plate in plates if not plate.is_empty]


def _of_sft(seeds: Sequence[Recorded]) -> list[Plate]:
    there = _with(seeds, "sft")
    plates = []
    if there:
        plates.append(_groups("sft_groups", "Figure 3", "sft", there))
    if _with(there, "sft", "irrelevant_train"):
        there = _with(there, "sft", "irrelevant_train")
        draw: _Draw = paper_sft.hallucination
        plates.append(_plate("sft_hallucination", "Section 4.1", draw, there, _PROBED))
    both = [one for one in _with(seeds, "sft") if _splits(one, "sft") == 2]
    if both:
        plates.append(_held_out("sft_train_and_test", "sft", both))
    return plates


def _of_dpo(seeds: Sequence[Recorded]) -> list[Plate]:
    there = _with(seeds, "dpo")
    if not there:
        return []
    plates = [
        _plate(name, paper, draw, there, _PROBED)
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
        plates.append(_held_out("dpo_held_out", "dpo", both))
    policies = _with(there, "on-policy")
    if policies:
        about = (
            "On-policy: each rejected answer of the training pairs was sampled from "
            "the model after SFT. The probes are the same in both."
        )
        draw = paper_dpo._on_policy
        plates.append(_plate("dpo_on_policy", "Section 3.3", draw, policies, about))
    return plates


def _of_extend(seeds: Sequence[Recorded]) -> list[Plate]:
    plates = []
    first = _with(seeds, "extend-sft")
    if first:
        about = f"{_PROBED} Extend trains on both answers, so on twice as many updates."
        draw: _Draw = paper_extend.extend_sft
        plates.append(_plate("extend_sft", "Figure 5", draw, first, about))
        plates.append(_groups("extend_sft_groups", "Figures 3, 5", "extend-sft", first))
    both = _with(_with(seeds, "dpo"), "extend-dpo")
    if both:
        for name, draw in (
            ("extend_dpo", paper_extend.extend_dpo),
            ("extend_matched", paper_extend.extend_matched),
        ):
            plates.append(_plate(name, "Figure 5", draw, both, _PROBED))
    return plates


def _of_learnt(seeds: Sequence[Recorded]) -> list[Plate]:
    plates = []
    sized = [one for one in seeds if one.vocabulary is not None]
    if sized and paper_proxies._roles_of(sized):
        for name, signs in (("lbk", False), ("sign_delta", True)):
            draw = _proxy(signs)
            about = "As in the authors' notebook, which is not what the paper defines."
            plates.append(_plate(name, "Figure 8", draw, sized, about))
    if len(learnt_by(seeds)) > 1:
        for name, normalised in (("heat_map", True), ("heat_map_nats", False)):
            draw = _map(normalised)
            about = "Ten epochs of SFT on one kind of answer to the probed prompts."
            plates.append(_plate(name, "Appendix D", draw, seeds, about))
    return plates


def _plate(
    name: str, paper: str, draw: _Draw, seeds: Sequence[Recorded], about: str
) -> Plate:
    return Plate(name, paper, lambda width: draw(seeds, width), about)


def _groups(name: str, paper: str, role: str, seeds: Sequence[Recorded]) -> Plate:
    def draw(those: Sequence[Recorded], width: int) -> Sheet:
        return paper_sft._groups(those, role, width)

    return _plate(name, paper, draw, seeds, _PROBED)


def _held_out(name: str, role: str, seeds: Sequence[Recorded]) -> Plate:
    kinds = ("chosen", GREEDY, "rejected", "irrelevant_train")
    about = "Solid: probed training prompts. Dashed: prompts never trained on."

    def draw(those: Sequence[Recorded], width: int) -> Sheet:
        return paper_sft._held_out(those, role, kinds, width)

    return _plate(name, "Section 4, D_probtest", draw, seeds, about)


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
