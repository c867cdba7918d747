"""The search in a report."""

from __future__ import annotations

from pathlib import Path

from segan.report.search import (
    Rung,
    SearchSummary,
    TrialSummary,
    rung_epochs,
    summarise_rung,
    summarise_trial,
)
from segan.report.training_charts import parameter_labels, search_chart
from segan.runs.run import Run
from segan.runs.trial import Trial, TrialStatus


def make_trial(
    name: str, *jaccards: float, status: TrialStatus = TrialStatus.PRUNED
) -> TrialSummary:
    return TrialSummary(
        name=name,
        parameters={},
        jaccard=max(jaccards, default=0),
        threshold=0.5,
        best_epoch=1,
        epochs=len(jaccards),
        status=status,
        reason="",
        best_jaccards=tuple(enumerate(jaccards, 1)),
    )


def test_rungs_by_hand() -> None:
    assert rung_epochs(1, 3, 10) == [1, 3, 9]
    assert rung_epochs(2, 2, 8) == [2, 4]  # the last epoch is not a rung
    assert rung_epochs(1, 1.5, 4) == [1, 2, 3]  # 1, 1.5 and 2.25 rounded up
    assert rung_epochs(5, 3, 4) == []


def test_rung_by_hand() -> None:
    trials = [
        make_trial("a", 0.1, 0.3, 0.5, status=TrialStatus.FINISHED),
        make_trial("b", 0.4, 0.4),
        make_trial("c", 0.05),
    ]
    assert summarise_rung(1, trials) == Rung(epoch=1, num_reached=3, num_promoted=2, cutoff=0.1)
    assert summarise_rung(2, trials) == Rung(epoch=2, num_reached=2, num_promoted=1, cutoff=0.3)
    assert summarise_rung(3, [make_trial("d", 0.1)]) == Rung(
        epoch=3, num_reached=0, num_promoted=0, cutoff=None
    )


def test_best_so_far(tmp_path: Path) -> None:
    lines = [{"epoch": 1, "jaccard": 0.3}, {"epoch": 2}, {"epoch": 3, "jaccard": 0.2}]
    lines.append({"epoch": 4, "jaccard": 0.5})
    summary = summarise_trial(Trial("t", {}, Run(str(tmp_path))), lines)
    assert summary.best_jaccards == ((1, 0.3), (3, 0.3), (4, 0.5))
    assert (summary.jaccard, summary.best_epoch, summary.epochs) == (0.5, 4, 4)


def test_trials_with_different_parameters() -> None:
    point = {"loss.reduction": "per_level", "logistic.final_k": 0.3}
    one, other = make_trial("a", 0.5), make_trial("b", 0.4)
    trials = (one.model_copy(update={"parameters": point}), other)
    search = SearchSummary(
        algorithm="random", trials=trials, rungs=(), epochs_trained=2, epochs_without_stopping=2
    )
    assert parameter_labels(search) == {
        "logistic.final_k": "final k",
        "loss.reduction": "loss.reduction",
    }
    chart = search_chart(search)
    assert chart is not None
    assert [name for _, name, _ in chart.axes] == ["threshold", "Jaccard"]
