"""dL/dlogp of every loss in closed form, written out by hand: the oracle of `push`."""

import torch

from learndyn.forces.losses.loss import Pairs, below_zero, log_one_minus_exp


def closed_form(loss, logp, responses):
    """dL/dlogp of each token, by the formula in `loss.push_equation`."""
    if loss.layout == "pairs":
        pairs = Pairs.of(logp, responses)
        chosen, rejected = PAIRS[loss.name](loss, pairs)
        slope = logp.new_zeros(len(responses.n_tokens))
        slope[pairs.chosen_index] = chosen / len(chosen)
        slope[pairs.rejected_index] = rejected / len(rejected)
        return responses.spread(slope)
    return UNPAIRED[loss.name](loss, logp, responses)


def below(loss, score):
    """beta sigma(-score): how hard a pair is still pushed."""
    return loss.beta * torch.sigmoid(-score)


def dpo(loss, pairs):
    slope = below(loss, loss.beta * pairs.margin())
    return -slope, slope


def cdpo(loss, pairs):
    slope = below(loss, loss.beta * pairs.margin()) - loss.beta * loss.label_smoothing
    return -slope, slope


def ipo(loss, pairs):
    slope = 2 * (pairs.margin() - 0.5 / loss.beta)
    return slope, -slope


def ipo_mean(loss, pairs):
    (chosen, rejected), (long, short) = pairs.log_ratios(), pairs.lengths()
    slope = 2 * (chosen / long - rejected / short - 0.5 / loss.beta)
    return slope / long, -slope / short


def slic(loss, pairs):
    chosen, rejected = pairs.sums()
    near = (loss.delta - (chosen - rejected) > 0).to(chosen)
    return -near - loss.regularise, near


def simpo(loss, pairs):
    (chosen, rejected), (long, short) = pairs.means(), pairs.lengths()
    slope = below(loss, loss.beta * (chosen - rejected) - loss.gamma)
    return -slope / long, slope / short


def orpo(loss, pairs):
    chosen, rejected = map(below_zero, pairs.means())
    long, short = pairs.lengths()
    odds = chosen - log_one_minus_exp(chosen)
    slope = below(loss, odds - (rejected - log_one_minus_exp(rejected)))
    # d log odds / d log p = 1 / (1 - p)
    return -(1 + slope / -chosen.expm1()) / long, slope / -rejected.expm1() / short


def sppo(loss, pairs):
    (chosen, rejected), target = pairs.log_ratios(), 0.5 / loss.beta
    return 2 * (chosen - target), 2 * (rejected + target)


def dpop(loss, pairs):
    chosen, rejected = pairs.log_ratios()
    score = loss.beta * (chosen - rejected - loss.weight * torch.relu(-chosen))
    slope = below(loss, score)
    return -slope * (1 + loss.weight * (chosen < 0).to(slope)), slope


def dpo_shift(loss, pairs):
    chosen, rejected = pairs.log_ratios()
    slope = below(loss, loss.beta * (chosen - loss.f * rejected))
    return -slope, slope * loss.f


def cal_dpo(loss, pairs):
    chosen, rejected = pairs.log_ratios()
    plus, minus = sppo(loss, pairs)
    slope = torch.sigmoid(rejected - chosen)
    return -slope + loss.weight * plus, slope + loss.weight * minus


def gate_dpo(loss, pairs):
    chosen, rejected = dpo(loss, pairs)
    return chosen, rejected * loss.gate(pairs)


def cw_dpo(loss, pairs):
    (chosen, rejected), weights = pairs.log_ratios(), loss.weights(pairs)
    slope = below(loss, loss.beta * (chosen - weights * rejected))
    return -slope, slope * weights


PAIRS = {
    **{"dpo": dpo, "cdpo": cdpo, "ipo": ipo, "ipo-mean": ipo_mean, "slic": slic},
    **{"simpo": simpo, "orpo": orpo, "sppo": sppo, "dpop": dpop},
    **{"dpo-shift": dpo_shift, "cal-dpo": cal_dpo},
    **{"gate-dpo": gate_dpo, "cw-dpo": cw_dpo},
}
"""Slopes by log pi(y+) and log pi(y-), pair by pair."""


def sft(loss, logp, responses):
    return torch.full_like(logp, -1.0) / len(responses.n_tokens)


def sft_mean(loss, logp, responses):
    return torch.full_like(logp, -1.0) / int(responses.n_tokens.sum())


def npo(loss, logp, responses):
    slope = 2 * torch.sigmoid(loss.beta * responses.log_ratios(logp))
    return responses.spread(slope / len(slope))


def unlikelihood(loss, logp, responses):
    sure = below_zero(logp)
    odds = loss.alpha * sure.exp() / -sure.expm1()
    slope = torch.where(responses.chosen[responses.owner()], -1.0, odds)
    return slope / len(responses.n_tokens)


def kto(loss, logp, responses):
    gain = loss.beta * (responses.log_ratios(logp) - loss.z_ref)
    weight = torch.full_like(gain, loss.undesirable)
    weight[responses.chosen] = -loss.desirable
    slope = weight * loss.beta * torch.sigmoid(gain) * torch.sigmoid(-gain)
    return responses.spread(slope / len(gain))


def grpo(loss, logp, responses):
    lengths, advantage = responses.n_tokens.to(logp), responses.advantage
    share = responses.spread(1 / lengths) / len(lengths)
    if loss.mean == "token":
        share = 1 / lengths.sum()
    advantage = responses.spread(advantage)
    ratio = (logp - responses.old_logp).exp()
    high = (advantage > 0) & (ratio > 1 + loss.epsilon_high)
    low = (advantage < 0) & (ratio < 1 - loss.epsilon)
    return torch.where(high | low, 0, -ratio * advantage) * share


UNPAIRED = {
    **{"sft": sft, "sft-mean": sft_mean, "npo": npo, "unlikelihood": unlikelihood},
    "gradient-ascent": lambda *given: -sft(*given),
    **{"kto": kto, "grpo": grpo},
}
