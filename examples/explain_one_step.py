"""One DPO update, explained: which part of it moved which answer.

    python examples/explain_one_step.py Qwen/Qwen2.5-0.5B pairs.jsonl

The step is an optimizer's own. The prediction is of first order; it stands beside what
really happened.
"""

import sys

import torch

import learndyn


def main(model_path: str, data: str, pairs: int = 8) -> None:
    """Take one AdamW step on the first pairs and print its parts for every kind."""
    tokenizer = learndyn.load_tokenizer(model_path)
    model = learndyn.load_model(model_path)
    rows = learndyn.read_data(data)
    probes = learndyn.build_probes(rows, prompts=pairs, or_fewer=True)
    tokens = learndyn.tokenize(probes, tokenizer)
    encode = learndyn.PairTokenizer(tokenizer)
    chosen, rejected = (
        [encode(row.prompt, row.responses[kind]) for row in rows.rows[:pairs]]
        for kind in ("chosen", "rejected")
    )

    predictor = learndyn.Predictor.attach(model, tokens.pairs)
    batch = learndyn.Batch.of(
        predictor.logps, chosen, rejected, learndyn.loss_named("dpo", beta=0.1)
    )
    signs = learndyn.sign_gradients(predictor.logps, batch)  # pull and push: sum = all
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = signs["pull"][name] + signs["push"][name]
    before = learndyn.score(model, tokens)
    with learndyn.capture_step(optimizer, model) as captured:
        optimizer.step()
    after = learndyn.score(model, tokens)

    step = captured.step
    with learndyn.placed(model, step.before):  # predict from where the update began
        parts = [predictor.along(step.preconditioned(g)) for g in signs.values()]
        whole = predictor.along(step.direction)
    print(f"{'mean nats':20}{'pull':>10}{'push':>10}{'predicted':>11}{'actual':>10}")
    for kind in probes.kinds:
        rows_of = [i for i, probe in enumerate(probes) if probe.kind == kind]
        values = [part.logp[rows_of].mean() for part in (*parts, whole)]
        values.append((after.logp - before.logp)[rows_of].mean())
        print(f"{kind:20}" + "".join(f"{value:+10.4f} " for value in values))


if __name__ == "__main__":
    main(*sys.argv[1:3])
