"""Where a class could gain from its peers: its own error and theirs, at one level of noise.

The mutual term pulls a network towards its peers' mean. Free to put out anything at a time t, it would put out what
lies at the share w = b / (1 + b) of the way there, b = beta omega(t) / lambda(t). So the share that held-out samples
ask for says which beta omega(t) would have served.
"""

from typing import NamedTuple

from torch import Tensor


class Pull(NamedTuple):
    """Means over samples and dimensions, in units of the noise's variance.

    own: of (e - n)², with e the class's own estimate of the noise n; peers: the same of the peers' estimate m;
    disagreement: of (e - m)²; share: the w in [0, 1] for which e + w (m - e) is nearest to n; gain: by how much
    it is nearer than e, 0 where the peers are of no use.
    """

    own: float
    peers: float
    disagreement: float
    share: float
    gain: float


def pull(own: Tensor, peers: Tensor, noise: Tensor) -> Pull:
    """All of one shape, of which all entries count alike.

    w = <e - n, e - m> / ||e - m||², cut to [0, 1].
    """
    error, difference = (own - noise).double(), (own - peers).double()
    apart = difference.square().mean()
    together = (error * difference).mean()
    share = (together / apart).clamp(0, 1) if apart else apart
    missed, left = error.square().mean(), (error - share * difference).square().mean()
    return Pull(*map(float, (missed, (peers - noise).double().square().mean(), apart, share, (missed - left).clamp(0))))
