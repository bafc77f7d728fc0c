"""A balance loss: how far the mean scores are from even, 1 - entropy / log(experts). 0 if even, 1 if one has all."""

import math

from torch.special import entr

from fgmoe_dist.experts.balance import BALANCE


def unevenness(sums):
    share_TE = sums.mean_score_TE  # of all ranks' tokens, with the gradient of this rank's
    return 1 - entr(share_TE).sum(1).mean() / math.log(share_TE.shape[1])


BALANCE["unevenness"] = unevenness
