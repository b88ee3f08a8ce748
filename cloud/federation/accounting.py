"""What noised sums give away: (ε, δ) by Google's `dp-accounting`. Decides no budget.

The unit is one labelled sample of a scenario, there or not. A sum with a multiplier z is one Gaussian mechanism of
sensitivity 1 and standard deviation z (`common.projection`); several of the same samples compose to one with
1/z² = Σ 1/zᵢ², exactly. Each sample is in one cohort of a round, so cohorts do not add up, rounds do.
"""

from collections.abc import Sequence
from types import ModuleType

from common.errors import OperatorError


def multiplier_for(epsilon: float, delta: float) -> float:
    """The noise that makes one sum (ε, δ)-private.

    Raises:
        OperatorError: `dp-accounting` is not installed.
    """
    return float(_library().get_sigma_gaussian(epsilon, delta))


def epsilon_of(multipliers: Sequence[float], delta: float) -> float:
    """ε at this δ of all these sums together; 0 of none.

    Raises:
        OperatorError: `dp-accounting` is not installed.
    """
    if not multipliers:
        return 0.0
    together = sum(multiplier**-2 for multiplier in multipliers) ** -0.5
    return float(_library().get_epsilon_gaussian(together, delta))


def _library() -> ModuleType:
    try:
        import dp_accounting
    except ImportError as error:
        raise OperatorError(
            "privacy.epsilon needs the library dp-accounting", "Install it: pip install 'headframe[privacy]'."
        ) from error
    return dp_accounting  # type: ignore[no-any-return]
