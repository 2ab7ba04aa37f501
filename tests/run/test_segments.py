"""Nodes in segments: weights, parities, and that refinements use every node again."""

import numpy as np
import pytest

from igfast.run.segments import PILOT_INTERVALS, Segments


class Sums:
    """Even and odd sums of a function on the nodes of one path, as igfast keeps them."""

    def __init__(self, function, n_segments):
        self.function = function
        self.segments, nodes = Segments.pilot(n_segments)
        self.halves, self.alphas = np.zeros((n_segments, 2)), []
        self.add(nodes)

    def add(self, nodes):
        for alpha, segment, parity, weight, following in zip(
            nodes.alpha, nodes.segment, nodes.parity, nodes.weight, nodes.next_parity, strict=True
        ):
            self.alphas.append(alpha)
            self.halves[segment, parity] += weight * self.function(alpha)
            if following >= 0:
                self.halves[segment + 1, following] += weight * self.function(alpha)

    def refine(self, differences, total, tolerance, most=10_000):
        nodes = self.segments.refined(np.asarray(differences, float), total, tolerance, most)
        if nodes is not None:
            for segment in np.flatnonzero(self.segments.folds):
                self.halves[segment] = self.halves[segment].sum(), 0.0
            self.add(nodes)
        return nodes

    def integral(self):
        return float(self.segments.h @ self.halves.sum(axis=1))

    def of_parity(self, parity):
        return float(2 * self.segments.h @ self.halves[:, parity])


def trapezoids(function, places):
    values = [function(place) for place in places]
    return sum((b - a) * (f + g) / 2 for a, b, f, g in zip(places, places[1:], values, values[1:], strict=False))


@pytest.mark.parametrize("n_segments", [1, 2, 4, 8])
def test_pilot_is_the_trapezoid_rule_of_nine_nodes(n_segments):
    sums = Sums(np.exp, n_segments)
    places = np.linspace(0, 1, PILOT_INTERVALS + 1)
    np.testing.assert_allclose(sums.alphas, places, rtol=0, atol=1e-15)
    assert sums.integral() == pytest.approx(trapezoids(np.exp, places), abs=1e-14)
    assert sums.of_parity(0) == pytest.approx(trapezoids(np.exp, places[::2]), abs=1e-14)
    assert sums.of_parity(1) == pytest.approx(np.exp(places[1::2]).mean(), abs=1e-14)


@pytest.mark.parametrize("n_segments", [1, 2, 4, 8])
def test_refinements_use_every_node_again(n_segments):
    rng = np.random.default_rng(0)
    sums = Sums(np.exp, n_segments)
    for _ in range(4):
        differences = rng.random(n_segments) ** 4 + 1e-3
        assert sums.refine(differences, float(np.linalg.norm(differences)), 0.05) is not None
        places = [(j + i / n) / n_segments for j, n in enumerate(sums.segments.n) for i in range(n)] + [1.0]
        np.testing.assert_allclose(sorted(sums.alphas), places, rtol=0, atol=1e-14)
        assert len(sums.alphas) == sums.segments.n_nodes
        assert sums.integral() == pytest.approx(trapezoids(np.exp, places), abs=1e-13)
        even = [(j + i / n) / n_segments for j, n in enumerate(sums.segments.n) for i in range(0, n, 2)] + [1.0]
        assert sums.of_parity(0) == pytest.approx(trapezoids(np.exp, even), abs=1e-13)
    if n_segments > 2:
        assert len(set(sums.segments.n)) > 1


def test_nodes_go_where_differences_are():
    sums = Sums(np.exp, 4)
    sums.refine([1.0, 1e-6, 1e-6, 1e-6], 1.0, 0.05)
    assert sums.segments.n[0] > 4
    assert (sums.segments.n[1:] == 2).all()


def test_no_more_nodes_than_allowed():
    sums = Sums(np.exp, 8)
    assert sums.refine(np.ones(8), 1.0, 1e-6, most=9) is None
    assert sums.refine(np.ones(8), 1.0, 1e-6, most=17) is not None
    assert sums.segments.n_nodes == 17
    assert sums.refine(np.ones(8), 1.0, 1e-9, most=100) is not None
    assert 17 < sums.segments.n_nodes <= 100


def test_a_doubtful_example_has_all_segments_halved():
    sums = Sums(np.exp, 4)
    sums.refine([0.1, 0.0, 0.0, 0.0], 0.1, 0.0)
    assert sums.segments.n.tolist() == [4, 4, 4, 4]
