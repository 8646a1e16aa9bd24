"""Whether an encoder's accuracies are a gain over its baselines, in a sentence or two."""

from collections.abc import Iterable

from matrix_ssl.report.formats import percent
from matrix_ssl.report.measures import BASELINES, MEASURES, measure_name
from matrix_ssl.report.tables import Difference, ProtocolResult, Score

_SIGNIFICANT = 0.05  # a p value below it counts as a difference


def accuracy_verdict(results: Iterable[ProtocolResult]) -> str:
    """The measure that gains least over its best baseline, and the one that gains most; empty if there are none."""
    results = list(results)
    judged = [(measure.key, result) for measure in MEASURES for result in results if measure.key in result.measures]
    if not judged:
        return ""
    compared = [one for one in judged if _against(*one)] if _against(*judged[0]) else []
    ranked = sorted(compared, key=lambda one: _gain(*one)) or judged
    return _verdict_on(*ranked[0]) + (_best(*ranked[-1]) if len(compared) > 1 else "")


def _verdict_on(key: str, result: ProtocolResult) -> str:
    name = measure_name(key) + (" per class" if key.startswith("low_shot") else "")
    baselines = _against(key, result)
    if not baselines:
        return f"{name}: there are no baselines to compare the accuracy of the frozen encoder with."
    best = max(baselines, key=lambda name: baselines[name].accuracy).replace("untrained", "the untrained")
    gain, doubt = _gain(key, result), _doubt(key, result)
    worth = f"no clear gain: {doubt}" if doubt else "a gain" if gain > 0 else "a loss"
    points = percent(gain, sign="+")
    return (
        f"{name[0].upper()}{name[1:]}: the accuracy of the frozen encoder is {points} points against {best}, {worth}."
    )


def _best(key: str, result: ProtocolResult) -> str:
    """Where the encoder gains most; empty if it gains nowhere."""
    gain, doubt = _gain(key, result), _doubt(key, result)
    if gain <= 0:
        return ""
    points = percent(gain, sign="+")
    return f" It gains most in {measure_name(key)}: {points} points{doubt and ', '}{doubt}."


def _doubt(key: str, result: ProtocolResult) -> str:
    """Why the gain over the best baseline may be due to chance; empty if there is no such reason.

    Results of earlier versions have no paired differences from the baselines and are judged by what they have.
    """
    baselines = _against(key, result)
    name = max(baselines, key=lambda name: baselines[name].accuracy)
    score, best = result.measures[key], baselines[name]
    (baseline,) = (b for b, shown in BASELINES.items() if shown == name)
    if paired := result.differences.get(baseline, {}).get(key):
        return _doubt_paired(paired)
    if spread := max(score.sd_over_draws, best.sd_over_draws):
        return "within the spread over draws" if abs(score.accuracy - best.accuracy) <= spread else ""
    low, high = score.interval
    return "within the interval of the test images" if low <= best.accuracy <= high else ""


def _doubt_paired(paired: Difference) -> str:
    low, high = paired.interval
    if low <= 0 <= high:
        return "the 95 % interval of the difference includes 0"
    chance = paired.p is not None and paired.p >= _SIGNIFICANT
    return f"McNemar's exact test gives p = {paired.p:.2f}" if chance else ""


def _against(key: str, result: ProtocolResult) -> dict[str, Score]:
    """The baselines of a measure, by name."""
    return {name: result.baselines[b][key] for b, name in BASELINES.items() if key in result.baselines.get(b, {})}


def _gain(key: str, result: ProtocolResult) -> float:
    """The accuracy above the best baseline."""
    return result.measures[key].accuracy - max(other.accuracy for other in _against(key, result).values())
