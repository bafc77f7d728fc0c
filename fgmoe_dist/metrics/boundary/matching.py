"""How many predicted boundary pixels can be paired one to one with true ones within a radius, threshold by threshold.

What the original does (BSDS `correspondPixels`, called by SEISM): it solves an assignment in which a pair costs its
distance d <= D, D = max_dist * image diagonal, and a pixel left alone costs 100 D (the "outlier cost" of 100 is a
multiple of D). With n1 and n2 pixels and k pairs the outlier nodes it adds make the total  sum(d) + 100 D (n1 + n2 -
k): one more pair saves 100 D. Only k enters precision and recall.

Why maximum cardinality is that k. Take a minimum-cost solution with k pairs and suppose k + 1 were possible. Then an
augmenting path exists; flipping it adds one pair, adds p distances <= D and drops p - 1 distances >= 0. Its net cost
is at most p D, so the solution was not minimal unless the path re-pairs more than 100 pixels, each of them pushed on
by D: the net cost is about the length of contour between the two unpaired ends, and exceeds 100 D only where that is
longer than 100 D pixels (0.75 of the image diagonal at max_dist 0.0075, 1.1 diagonals at 0.011). Even then the counts
differ by one pixel in more than a hundred pairs; with fewer than 100 pixels on one side of a connected part they never
differ. (The original itself is not exact: it rounds distances to 0.01 pixels and draws six random outlier links a
pixel.)

So no costs are needed, and the maximum matching of one threshold is nearly that of the next: `Matcher` keeps the pairs,
frees what vanished and looks for augmenting paths from all unpaired pixels at once, breadth first in whole-array steps.
(scipy's `maximum_bipartite_matching` starts from nothing and takes minutes per image on such graphs.)

Words: L = predicted pixels (the union over all thresholds), R = true boundary pixels, E = pairs within the radius.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

_NONE = -1


@dataclass(frozen=True)
class Neighbours:
    """Adjacency in compressed rows: row i is `index_E[start[i] : start[i + 1]]`."""

    start: np.ndarray
    index_E: np.ndarray

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(position in `rows`, neighbour) of every edge of these rows."""
        first = self.start[rows]
        count = self.start[rows + 1] - first
        owner = np.repeat(np.arange(len(rows)), count)
        shift = np.repeat(first - (np.cumsum(count) - count), count)
        return owner, self.index_E[np.arange(len(owner)) + shift]


class Matcher:
    """Maximum one-to-one pairing of a changing set of predicted pixels with the true ones of one image.

    Args:
        candidate_HW: bool, every pixel that any threshold may predict.
        truth_HW: bool, the true boundary.
        radius: pixels farther apart (Euclidean) than this do not pair; equal is near enough.
    """

    def __init__(self, candidate_HW: np.ndarray, truth_HW: np.ndarray, radius: float):
        self.near, self._right_to_left, self._left_to_right = _pairs_within(candidate_HW, truth_HW, radius)
        self._mate_L = np.full(len(self.near), _NONE)
        self._mate_R = np.full(len(self._right_to_left.start) - 1, _NONE)

    def count(self, predicted_HW: np.ndarray) -> int:
        """Pairs of a maximum matching between `predicted_HW` (a subset of the candidates) and the truth.

        Fast when the last call's prediction was much the same.
        """
        present_L = predicted_HW.ravel()[self.near]
        vanished = np.flatnonzero(~present_L & (self._mate_L != _NONE))
        self._mate_R[self._mate_L[vanished]] = _NONE
        self._mate_L[vanished] = _NONE
        while self._augment(present_L):
            pass
        return int((self._mate_L != _NONE).sum())

    def _augment(self, present_L: np.ndarray) -> bool:
        """Flip disjoint augmenting paths, grown from the side with fewer unpaired pixels; False if there is none."""
        free_L = np.flatnonzero(present_L & (self._mate_L == _NONE))
        free_R = np.flatnonzero(self._mate_R == _NONE)
        if len(free_L) <= len(free_R):
            return _flip_paths(free_L, self._left_to_right, self._mate_L, self._mate_R, None)
        return _flip_paths(free_R, self._right_to_left, self._mate_R, self._mate_L, present_L)


def _flip_paths(roots, neighbours: Neighbours, mate_A, mate_B, allowed_B) -> bool:
    """Grow a tree from each root (A side), all at once and disjoint; flip a path in each that reaches a free B.

    A tree that is cut short by others may succeed in the next call; when no tree succeeds, no augmenting path exists
    at all and the matching is maximum (Berge): the trees then hold everything reachable from any root.
    """
    parent_B = np.full(len(mate_B), _NONE)
    tree_A = np.full(len(mate_A), _NONE)
    tree_A[roots] = roots
    end_A = np.full(len(mate_A), _NONE)  # by root: the free B its tree reached
    frontier = roots
    while len(frontier):
        owner, reached = neighbours.of(frontier)
        new = parent_B[reached] == _NONE
        if allowed_B is not None:
            new &= allowed_B[reached]
        source, reached = frontier[owner[new]], reached[new]
        parent_B[reached] = source  # several sources may claim one B; the last one written has it
        mine = parent_B[reached] == source
        source, reached = source[mine], reached[mine]
        mate = mate_B[reached]
        free = mate == _NONE
        end_A[tree_A[source[free]]] = reached[free]
        frontier = mate[~free]
        tree_A[frontier] = tree_A[source[~free]]
        frontier = frontier[end_A[tree_A[frontier]] == _NONE]
    b = end_A[roots]
    b = b[b != _NONE]
    found = len(b) > 0
    while len(b):
        a = parent_B[b]
        following = mate_A[a]
        mate_A[a], mate_B[b] = b, a
        b = following[following != _NONE]
    return found


def _pairs_within(candidate_HW, truth_HW, radius: float) -> tuple[np.ndarray, Neighbours, Neighbours]:
    """(flat pixel of each L, R -> L neighbours, L -> R neighbours); L only holds candidates near some truth."""
    reach = int(radius)
    dy_K, dx_K = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    disc_K = dy_K**2 + dx_K**2 <= radius**2
    height, width = truth_HW.shape
    padded_width = width + 2 * reach  # so that a disc never leaves the array
    pixel = np.full((height + 2 * reach, padded_width), _NONE)
    y, x = np.nonzero(candidate_HW)
    pixel[y + reach, x + reach] = y * width + x
    y, x = np.nonzero(truth_HW)
    centre_R = (y + reach) * padded_width + x + reach
    around_RK = pixel.ravel()[centre_R[:, None] + (dy_K * padded_width + dx_K)[disc_K]]
    hit_RK = around_RK != _NONE
    near, left_E = np.unique(around_RK[hit_RK], return_inverse=True)
    start_R = np.concatenate([[0], np.cumsum(hit_RK.sum(1))])
    by_left = sparse.csr_matrix((np.ones(len(left_E), bool), left_E, start_R), shape=(len(y), len(near))).tocsc()
    return near, Neighbours(start_R, left_E), Neighbours(by_left.indptr, by_left.indices)
