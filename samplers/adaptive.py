"""Best of N, where N is what the prompt asks for."""

from __future__ import annotations

from dataclasses import dataclass

from samplers.best_of_n import BestOfN
from samplers.stopping import ExpectedGain


@dataclass(frozen=True)
class AdaptiveBestOfN(BestOfN):
    """Best of N that stops as soon as one more sample would gain too little.

    Samples are drawn ``in_flight`` at a time; after each turn the rewards so far say what the next
    sample is expected to gain over the best (:class:`samplers.stopping.ExpectedGain`). A prompt whose
    rewards hardly differ stops early and leaves its share of the batch to others. All options are those
    of :class:`samplers.BestOfN`; the plan is an upper bound. The answer to Manvi et al. 2024
    (2410.02725), without a model trained for it.

    Attributes:
        n: most candidates.
        in_flight: candidates a turn.
        stop: when it is enough.
    """

    n: int = 64
    in_flight: int = 4
    stop: ExpectedGain | None = ExpectedGain()
