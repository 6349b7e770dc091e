"""Images of digits: the reader, the kernel against brute force, claims and the page."""

import gzip
import json
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from learndyn.diagnose.intervals import spearman
from learndyn.errors import BadInput
from learndyn.paper.digits import (
    claims as digit_claims,
    measure as lab_digits,
    page as digits_page,
)
from learndyn.paper.digits.claims import digits_claims
from learndyn.paper.digits.figures import digit_figures
from learndyn.paper.digits.images import Digits, _read_idx, load_digits, split
from learndyn.paper.digits.measure import (
    _OBSERVED,
    _SETS,
    measure_digits,
)
from learndyn.paper.digits.network import (
    Training,
    _jacobian,
    _kernel,
    after_one_step,
    class_paths,
    first_order,
    kernel_norms,
    lenet,
    mean_softmax,
    rates,
    train,
    training_for,
)
from learndyn.paper.digits.page import write_digits
from learndyn.paper.digits.result import DigitsResult, off_diagonal
from learndyn.show.chart import WIDE, svg_of


STEPS = np.logspace(-6, -2, 9)


def idx(values, *, type_byte=0x08, sizes=None) -> bytes:
    """An IDX file, written by the format's description."""
    values = np.asarray(values, dtype=np.uint8)
    sizes = values.shape if sizes is None else sizes
    head = bytes([0, 0, type_byte, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
    return head + values.tobytes()


def write_folder(folder, part, images, labels, end=""):
    folder.mkdir(exist_ok=True)
    pack = gzip.compress if end else bytes
    (folder / f"{part}-images-idx3-ubyte{end}").write_bytes(pack(idx(images)))
    (folder / f"{part}-labels-idx1-ubyte{end}").write_bytes(pack(idx(labels)))
    return folder


def some_images(count, side=8, seed=0):
    chance = np.random.default_rng(seed)
    return chance.integers(0, 256, (count, side, side)), np.arange(count) % 10


@pytest.fixture(scope="module")
def network():
    return lenet(8, 3).double()


@pytest.fixture(scope="module")
def classes():
    """Ten classes of three images to learn and two to observe, float64."""
    chance = torch.Generator().manual_seed(1)
    drawn = torch.rand(10, 5, 1, 8, 8, generator=chance, dtype=torch.float64)
    return drawn[:, :3], drawn[:, 3:]


@pytest.fixture(scope="module")
def result():
    pytest.importorskip("sklearn")
    return measure_digits(0, training=Training(lr=0.05, epochs=2))


# The images


@pytest.mark.parametrize("end", ["", ".gz"])
def test_an_idx_file_gives_its_values_back(tmp_path, end):
    images, labels = some_images(40)
    folder = write_folder(tmp_path, "t10k", images, labels, end)
    found = load_digits(folder)
    np.testing.assert_array_equal(np.rint(255 * found.images), images)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.trainable.all()
    assert found.observed.all()


WHOLE = idx(np.zeros((2, 8, 8)))
DAMAGED = {
    "empty": (b"", "begins with the bytes none"),
    "a picture": (b"\x89PNG\r\n", "89 50 4e 47"),
    "floats": (idx(np.zeros((2, 8, 8)), type_byte=0x0D), "00 00 08 03"),
    "labels": (idx(np.zeros(2)), "3 dimensions"),
    "half a head": (WHOLE[:9], "ends within its head, after 9 bytes"),
    "short": (WHOLE[:-1], "2 x 8 x 8 = 128 values, and has 127"),
    "long": (WHOLE + b"\0", "has more"),
    "huge": (idx([], sizes=(2**31, 2**31, 2**31)), "at most 1,073,741,824"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_damaged_file_says_what_is_wrong(tmp_path, name, end):
    content, said = DAMAGED[name]
    path = tmp_path / f"images{end}"
    path.write_bytes(gzip.compress(content) if end else content)
    with pytest.raises(BadInput, match=said):
        _read_idx(path, 3)


@pytest.mark.parametrize(
    "content",
    [WHOLE, gzip.compress(WHOLE)[:-9], gzip.compress(WHOLE)[:12] + b"\xff" * 30],
    ids=["not packed", "cut", "overwritten"],
)
def test_a_damaged_gzip_file_is_told_as_such(tmp_path, content):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="damaged"):
        _read_idx(path, 3)


def wrong_folders(tmp_path):
    images, labels = some_images(20)
    yield "has no t10k-images", tmp_path / "nowhere"
    alone = tmp_path / "alone"
    write_folder(alone, "t10k", images, labels)
    (alone / "t10k-labels-idx1-ubyte").unlink()
    yield "lacks its partner", alone
    yield (
        "20 images, t10k-labels-idx1-ubyte has 19 labels",
        write_folder(tmp_path / "apart", "t10k", images, labels[:-1]),
    )
    yield "8 x 6 pixels", write_folder(tmp_path / "b", "t10k", images[..., :6], labels)
    yield (
        "4 x 4 pixels",
        write_folder(tmp_path / "c", "t10k", images[:, :4, :4], labels),
    )
    yield "the label 10", write_folder(tmp_path / "d", "t10k", images, labels + 1)


def test_a_folder_of_images_that_do_not_fit_says_why(tmp_path):
    for said, folder in wrong_folders(tmp_path):
        with pytest.raises(BadInput, match=said):
            load_digits(folder)


def test_without_scikit_learn_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(BadInput, match=r"pip install 'learndyn\[paper\]'"):
        load_digits()


def test_sets_are_disjoint_of_equal_classes_and_follow_from_the_seed(tmp_path):
    write_folder(tmp_path, "t10k", *some_images(900))
    digits = load_digits(tmp_path)
    found = split(digits, _SETS, _OBSERVED, seed=5)
    rows = np.concatenate([rows.ravel() for rows in found.values()])
    assert len(set(rows.tolist())) == len(rows)
    for mine in found.values():
        labels = np.arange(10)[:, None]
        np.testing.assert_array_equal(
            digits.labels[mine], np.broadcast_to(labels, mine.shape)
        )
    again = split(digits, _SETS, _OBSERVED, seed=5)
    other = split(digits, _SETS, _OBSERVED, seed=6)
    assert all(np.array_equal(found[name], again[name]) for name in _SETS)
    assert not np.array_equal(found["kernel"], other["kernel"])


def test_training_images_are_learnt_and_test_images_observed(tmp_path):
    write_folder(tmp_path, "t10k", *some_images(300))
    write_folder(tmp_path, "train", *some_images(500, seed=1))
    digits = load_digits(tmp_path)
    found = split(digits, _SETS, _OBSERVED, seed=0)
    for name, rows in found.items():
        assert ((rows < 300) == (name in _OBSERVED)).all()


def test_too_few_images_of_a_digit_are_counted(tmp_path):
    images, labels = some_images(300)
    labels[labels == 7] = 1
    labels[0] = 7
    write_folder(tmp_path, "t10k", images, labels)
    with pytest.raises(BadInput, match=r"30, 30, 30, 30, 30, 30, 1, 30, 30|30, 1, 30"):
        split(load_digits(tmp_path), _SETS, _OBSERVED, seed=0)


# The network and the kernel


def test_the_network_is_the_papers_and_follows_from_its_seed_alone():
    before = torch.get_rng_state()
    network, again, other = lenet(28, 0), lenet(28, 0), lenet(28, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert [p.shape[0] for p in network.parameters()][::2] == [6, 16, 60, 42, 10]
    pairs = zip(network.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(network.parameters()), next(other.parameters()))
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert training_for(28) != training_for(8)


def test_training_lowers_the_loss_and_is_the_same_again():
    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(20)
    images = torch.rand(200, 1, 8, 8, generator=chance) * 0.1
    images[torch.arange(200), 0, labels // 8, labels % 8] += 5
    plan = Training(lr=0.1, epochs=8)
    losses, seen = [], []
    for _ in range(2):
        layer = torch.nn.Linear(64, 10)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        network = torch.nn.Sequential(torch.nn.Flatten(), layer)
        seen.clear()
        for epoch in train(network, images, labels, plan, seed=1):
            seen.append(epoch)
        losses.append(torch.nn.functional.cross_entropy(network(images), labels).item())
    assert seen == list(range(9))
    assert losses[0] == losses[1]
    assert losses[0] < 1.0  # from log 10


def brute_jacobian(network, image):
    rows = []
    for logit in network(image[None])[0]:
        grads = torch.autograd.grad(
            logit, list(network.parameters()), retain_graph=True
        )
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


def test_the_kernel_is_that_of_one_logit_at_a_time(network, classes):
    observed, learnt = classes[1][0], classes[0][1]
    brute = [brute_jacobian(network, image) for image in (*observed, *learnt)]
    torch.testing.assert_close(
        _jacobian(network, observed), torch.stack(brute[:2]), rtol=1e-12, atol=1e-14
    )
    found = _kernel(network, observed, learnt)
    assert found.shape == (2, 3, 10, 10)
    for o in range(2):
        for u in range(3):
            wanted = brute[o] @ brute[2 + u].T
            torch.testing.assert_close(found[o, u], wanted, rtol=1e-12, atol=1e-12)
    back = _kernel(network, learnt, observed)
    torch.testing.assert_close(found, back.permute(1, 0, 3, 2), rtol=1e-12, atol=1e-12)


def test_a_k_g_makes_no_probability_and_is_the_limit_of_a_step(network, classes):
    observed, image = classes[1][2], classes[0][4, :1]
    rate = first_order(network, observed, image, 4)
    pi = network(observed).softmax(-1)
    assert rate.abs().max() > 0.1
    assert (pi * rate).sum(-1).abs().max() < 1e-13
    small = after_one_step(network, observed, image, 4, 1e-7) / 1e-7
    torch.testing.assert_close(rate, small, rtol=1e-4, atol=1e-5)


def order_of(network, observed, image, label, rate) -> float:
    misses = [
        float((after_one_step(network, observed, image, label, lr) - lr * rate).norm())
        for lr in STEPS.tolist()
    ]
    return float(np.polyfit(np.log(STEPS), np.log(misses), 1)[0])


def test_what_a_k_g_misses_is_of_second_order_and_of_first_with_a_wrong_factor(
    network, classes
):
    observed, image = classes[1].flatten(0, 1), classes[0][4, :1]
    rate = first_order(network, observed, image, 4)
    assert order_of(network, observed, image, 4, rate) == pytest.approx(2, abs=0.1)
    other = first_order(network, observed, classes[0][5, :1], 4)
    wrong = {"K of another image": other, "another label": rate.roll(1, dims=1)}
    for name, values in wrong.items():
        found = order_of(network, observed, image, 4, values)
        assert found == pytest.approx(1, abs=0.05), name


def test_rates_of_classes_are_means_of_a_k_g_over_all_pairs(network, classes):
    learnt, observed = classes
    wanted = np.zeros((10, 10))
    for u in range(10):
        for image in learnt[u]:
            change = first_order(network, observed.flatten(0, 1), image[None], u)
            wanted[u] += change[:, u].view(10, 2).mean(1).numpy() / 3
    np.testing.assert_allclose(rates(network, learnt, observed), wanted, rtol=1e-10)


def test_norms_of_classes_are_means_over_all_pairs(network, classes):
    learnt, observed = classes
    found = kernel_norms(network, learnt, observed)
    for u, o in ((0, 0), (3, 7), (7, 3)):
        norms = _kernel(network, observed[o], learnt[u]).flatten(2).norm(dim=-1)
        assert found[u, o] == pytest.approx(float(norms.mean()), rel=1e-10)


def test_learning_one_class_is_a_loop_of_steps_and_leaves_the_network_alone(
    network, classes
):
    learnt, observed = classes
    before = [p.clone() for p in network.parameters()]
    settings = {"lr": 0.1, "every": 1, "batch": 3, "seed": 0}
    change, paths = class_paths(network, learnt[:, :1], observed, updates=1, **settings)
    for p, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(p, old)
    for u in (0, 6):
        one = after_one_step(
            network, observed.flatten(0, 1), learnt[u, :1], u, 0.1
        ).view(10, 2, 10)
        np.testing.assert_allclose(change[u], one[:, :, u].mean(1), rtol=1e-9)
    start, _ = mean_softmax(network, observed)
    np.testing.assert_allclose(paths[:, 0], start.T, rtol=1e-12)
    _, longer = class_paths(
        network, learnt, observed, updates=4, **{**settings, "every": 2}
    )
    assert longer.shape == (10, 3, 10)
    own = np.arange(10)
    assert (longer[own, 2, own] > longer[own, 0, own]).all()


@pytest.mark.parametrize("ties", [False, True])
def test_the_rank_correlation_is_scipys(ties):
    chance = np.random.default_rng(0)
    a, b = chance.normal(size=(2, 90))
    b += a
    if ties:
        a, b = np.rint(a), np.rint(b)
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b)[0])


# What is measured, claimed and shown


def test_a_short_run_measures_everything_and_comes_back_from_json(result):
    assert result.one_update.order == pytest.approx(2, abs=0.1)
    assert [look.epoch for look in result.looks] == [1, 2]
    assert result.softmax.shape == (3, 10, 10)
    np.testing.assert_allclose(result.softmax.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(result.actual, sum(look.actual for look in result.looks))
    ranks = scipy.stats.spearmanr(
        off_diagonal(result.predicted), off_diagonal(result.actual)
    )
    assert result.accumulated["predicted, actual"] == pytest.approx(ranks[0])
    norms = np.sum([look.norms for look in result.looks], axis=0)
    ranks = scipy.stats.spearmanr(off_diagonal(norms), off_diagonal(result.actual))
    assert result.accumulated["norms, actual"] == pytest.approx(ranks[0])
    kept = json.loads(json.dumps(result.to_dict()))
    again = DigitsResult.from_dict(kept)
    assert again.to_dict() == result.to_dict()
    assert again.samples.dtype.kind == "i"
    assert again.looks[0].norms.shape == (10, 10)


def test_the_kernel_foresees_the_influence_of_real_updates(result):
    """On other images than its own; random ranks would be within 0.35 of zero."""
    for look in result.looks:
        assert look.agreement["predicted, actual"] > 0.5
        slope = (look.predicted * look.actual).sum() / (look.predicted**2).sum()
        assert slope == pytest.approx(1, abs=0.25)


def with_answers(result, final, paths=None):
    softmax = result.softmax.copy()
    softmax[-1] = final
    looks = result.looks
    if paths is not None:
        looks = tuple(replace(look, paths=paths) for look in looks)
    return replace(result, softmax=softmax, looks=looks)


def test_places_of_similar_digits_are_counted_from_the_most_probable(result):
    final = np.full((10, 10), 0.01)
    for a, b, value in ((4, 9, 0.2), (3, 5, 0.15), (5, 8, 0.1)):
        final[a, b] = value
    made = with_answers(result, final)
    assert digit_claims._rank_of_nine(made) == 1
    assert digit_claims._worst_rank(made) == 3
    final[4, 1] = final[4, 2] = 0.3
    made = with_answers(result, final)
    assert digit_claims._rank_of_nine(made) == 3
    assert digit_claims._worst_rank(made) == 5


def test_the_place_of_a_pull_up_leaves_the_learnt_digit_out(result):
    paths = np.zeros((10, 2, 10))
    paths[4, 1, 4], paths[4, 1, 9], paths[4, 1, 0] = 0.9, 0.3, 0.2
    made = with_answers(result, result.final, paths)
    assert digit_claims._rank_of_pull_up(made) == 1
    paths[4, 1, 0] = 0.4
    assert digit_claims._rank_of_pull_up(with_answers(result, result.final, paths)) == 2


def test_a_zig_zag_rises_above_both_its_ends(result):
    softmax = np.full((3, 10, 10), 0.01)
    softmax[1, :6, 9] = 0.3  # up and down again
    softmax[:, 6:9, 9] = [[0.1], [0.2], [0.3]]  # up alone
    softmax[:, 9, 0] = [0.3, 0.2, 0.1]  # down alone
    made = replace(result, softmax=softmax)
    assert digit_claims._main_rival(made, 0) == 9
    assert digit_claims._zigzags(made) == 6


def test_claims_are_named_once_and_have_a_figure(result):
    claims = digits_claims([result, replace(result, seed=1)])
    names = {figure.name for figure in digit_figures([result])}
    assert len({claim.name for claim in claims}) == len(claims) == 7
    assert {claim.figure for claim in claims} <= names
    assert all([one.seed for one in claim.measured] == [0, 1] for claim in claims)
    none = digits_claims([])
    assert [claim.outcome for claim in none] == ["N-A"] * 7
    assert [claim.name for claim in none] == [claim.name for claim in claims]


def with_agreement(result, name, value):
    return replace(result, accumulated={**result.accumulated, name: value})


def with_order(result, order):
    return replace(result, one_update=replace(result.one_update, order=order))


def with_rivals(result, better):
    """Images of 4 with `better` wrong answers more probable than 9."""
    final = np.full((10, 10), 0.01)
    final[4, 9] = 0.1
    final[4, :better] = 0.2
    return with_answers(result, final)


def with_brighter(result, better):
    """The paper's three pairs after so many others."""
    final = np.zeros((10, 10))
    for a, b in digit_claims.SIMILAR:
        final[a, b] = 0.1
    final[0, 1 : 1 + better] = 0.2
    return with_answers(result, final)


def with_lifted(result, better):
    """Learning 4s lifts the answer 4 more on so many digits than on 9s."""
    paths = np.zeros((10, 2, 10))
    paths[4, 1, 9] = 0.1
    paths[4, 1, :better] = 0.2
    return with_answers(result, result.final, paths)


def with_bumps(result, count):
    """So many digits whose main wrong answer rises and falls again."""
    softmax = np.full((3, 10, 10), 0.01)
    softmax[1, :count, 9] = 0.3
    return replace(result, softmax=softmax)


EDGES = {
    "digits-first-order": (with_order, (1.91, 2.09), (1.89, 2.11)),
    "digits-kernel-ranks-influence": (
        lambda result, value: with_agreement(result, "predicted, actual", value),
        (0.81,),
        (0.79,),
    ),
    "digits-kernel-and-confusion": (
        lambda result, value: with_agreement(result, "norms, confused", value),
        (0.31,),
        (0.29,),
    ),
    "digits-nine-for-four": (with_rivals, (0, 1), (2, 3)),
    "digits-similar-pairs": (with_brighter, (0, 8), (9,)),
    "digits-pull-up": (with_lifted, (0, 1), (2, 3)),
    "digits-zig-zag": (with_bumps, (5, 9), (4, 0)),
}
"""For every claim: how to make a result, what passes and what fails, at the edge."""


@pytest.mark.parametrize("name", EDGES)
def test_a_claim_passes_and_fails_on_either_side_of_its_rule(result, name):
    make, right, wrong = EDGES[name]
    for values, outcome in ((right, "PASS"), (wrong, "FAIL")):
        for value in values:
            claims = digits_claims([make(result, value)])
            found = {claim.name: claim.outcome for claim in claims}
            assert set(found) == set(EDGES)
            assert found[name] == outcome, value


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    """The page of two seeds, and what was asked for to make it."""
    asked = []

    def measured(seed, images=None):
        asked.append((seed, images))
        return replace(result, seed=seed, source="<b>ours</b>")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab_digits, "measure_digits", measured)
        patch.setattr(digits_page, "_SEEDS", 2)
        found = write_digits(tmp_path_factory.mktemp("digits") / "out", seed=4)
    return found, asked


def test_every_figure_is_drawn_alike_again_and_tells_its_data(written):
    found, _ = written
    figures = digit_figures(found.results)
    page = found.page.read_text(encoding="utf-8")
    assert len(figures) == 6
    for figure in figures:
        kept = found.page.parent / "figures" / f"{figure.name}.svg"
        assert kept.read_text(encoding="utf-8") == svg_of(figure.draw(WIDE))
        assert found.results[0].source in figure.about
        assert digits_page.text(figure.wide.title) in page
    titles = {figure.name: figure.wide.title for figure in figures}
    rank = f"{found.results[0].accumulated['predicted, actual']:.2f}"
    assert f"{rank}, {rank}" in titles["digits_influence"]
    moved = abs(found.results[0].one_update.actual[1, 4])
    assert f"{moved:.3f} on other 4s" in titles["digits_one_update"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ([0.1, 0.3, 0.05], "rose from 0.10 to 0.30 and ended at 0.05"),
        ([0.1, 0.105, 0.01], "went from 0.10 to 0.01"),
        ([0.1, 0.2, 0.3], "went from 0.10 to 0.30"),
    ],
    ids=["bump", "fall", "rise"],
)
def test_a_title_tells_of_a_peak_only_where_there_is_one(result, path, said):
    softmax = np.full((3, 10, 10), 0.01)
    softmax[:, 4, 9] = path
    figures = digit_figures([replace(result, softmax=softmax)])
    titles = {figure.name: figure.wide.title for figure in figures}
    assert titles["digits_paths"] == f"On images of 4, π(9) {said}"


def test_the_page_holds_figures_claims_and_numbers_but_no_script(written):
    found, asked = written
    page = found.page.read_text(encoding="utf-8")
    out = found.page.parent
    assert asked == [(4, None), (5, None)]
    assert "<script" not in page
    assert "<b>ours" not in page
    assert "&lt;b&gt;ours" in page
    assert page.count("<figure>") == 6
    for claim in found.claims:
        assert digits_page.text(claim.says) in page
    assert len(list((out / "figures").glob("*.svg"))) == 6
    kept = json.loads((out / "digits.json").read_text())
    assert [DigitsResult.from_dict(one).seed for one in kept] == [4, 5]
    assert json.loads(json.dumps(found.to_dict()))["seeds"] == [4, 5]
    assert str(found.page) in found.to_text()


def test_a_page_of_another_program_is_refused_before_any_work(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(lab_digits, "measure_digits", asked.append)
    (tmp_path / "digits.html").write_text("of another program")
    with pytest.raises(BadInput, match="not written by learndyn"):
        write_digits(tmp_path)
    assert asked == []


def test_digits_of_another_size_find_their_network():
    chance = np.random.default_rng(0)
    digits = Digits(
        "made",
        chance.random((10, 12, 12), dtype=np.float32),
        np.arange(10),
        np.ones(10, dtype=bool),
        np.ones(10, dtype=bool),
    )
    assert digits.side == 12
    for side in (8, 12, 15, 16, 28, 32):
        assert lenet(side, 0)(torch.zeros(1, 1, side, side)).shape == (1, 10)
