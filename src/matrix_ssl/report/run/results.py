"""The result of a run in a sentence or two."""

from matrix_ssl.report.formats import percent, whole
from matrix_ssl.report.measures import BASELINES, MEASURES, measure_name
from matrix_ssl.report.run.data import RunData
from matrix_ssl.report.tables import ProtocolResult


def verdict(data: RunData) -> str:
    """One or two sentences with the numbers that matter most."""
    own = [result for evaluation in data.evaluations if evaluation.is_own for result in evaluation.results]
    for measure in MEASURES:
        for result in own:
            if measure.key in result.measures:
                return _verdict_on(measure.key, result)
    rank = data.curve("effective_rank", "effective rank")
    if rank is None:
        return "Nothing has been measured yet."
    spectra = data.spectra()
    labels = data.arrays.get("map_labels")
    labelled = labels is None or bool((labels >= 0).any())
    why = "Not evaluated yet." if labelled else "These images have no labels to measure accuracy with."
    of = f" of at most {len(spectra[-1][1])}" if spectra else ""
    return (
        f"{why} The effective rank of the features went from {rank.y[0]:.3g} to {rank.y[-1]:.3g}{of} "
        f"between steps {whole(rank.x[0])} and {whole(rank.x[-1])}."
    )


def _verdict_on(key: str, result: ProtocolResult) -> str:
    name = measure_name(key) + (" per class" if key.startswith("low_shot") else "")
    score, images = result.measures[key], whole(result.set["test"].images)
    text = f"{name}: the frozen encoder classifies {percent(score.accuracy)}% of the {images} test images correctly"
    baselines = {name: result.baselines[b][key] for b, name in BASELINES.items() if key in result.baselines.get(b, {})}
    if not baselines:
        return f"{text}; there are no baselines to compare it with."
    others = ", ".join(f"{name} {percent(other.accuracy)}%" for name, other in baselines.items())
    best = max(baselines, key=lambda name: baselines[name].accuracy)
    gain = score.accuracy - baselines[best].accuracy
    spread = max(score.sd_over_draws, baselines[best].sd_over_draws)
    worth = "no clear gain: within the spread over draws" if abs(gain) <= spread else "a gain" if gain > 0 else "a loss"
    return f"{text} ({others}). That is {percent(gain, sign='+')} points against {best}, {worth}."
