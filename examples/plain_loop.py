"""A training loop of one's own: score the probes where you like.

    python examples/plain_loop.py Qwen/Qwen2.5-0.5B pairs.jsonl

SFT on chosen in plain torch. `Scorer` is attached once: a self-test finds how this
model may be read fast and exactly. Scoring leaves the training as it was.
"""

import sys

import torch

import learndyn


def main(model_path: str, data: str, updates: int = 20, every: int = 5) -> None:
    """Train on one row after the other and print mean nats of every kind."""
    tokenizer = learndyn.load_tokenizer(model_path)
    model = learndyn.load_model(model_path)
    rows = learndyn.read_data(data)
    probes = learndyn.build_probes(rows, prompts=16, or_fewer=True)
    tokens = learndyn.tokenize(probes, tokenizer)
    scorer = learndyn.Scorer.attach(model, tokens.pairs)
    encode = learndyn.PairTokenizer(tokenizer)
    train = [encode(row.prompt, row.responses["chosen"]) for row in rows.rows]

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    print("update", *probes.kinds)
    for update in range(updates + 1):
        if update % every == 0:
            seen = scorer.observe(step=update)
            means = [
                seen.logp[[probe.kind == kind for probe in probes]].mean()
                for kind in probes.kinds
            ]
            print(update, *(f"{mean:.2f}" for mean in means))
        pair = train[update % len(train)]
        ids = torch.tensor([[*pair.prompt_ids, *pair.response_ids]])
        labels = ids.clone()
        labels[:, : len(pair.prompt_ids)] = -100  # the response alone is learnt
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main(*sys.argv[1:3])
