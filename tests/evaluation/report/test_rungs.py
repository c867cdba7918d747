"""ASHA's rungs as a report shows them."""

from __future__ import annotations

from pathlib import Path

from segan.evaluation.report.page import parameters, search_chart
from segan.evaluation.report.rungs import (
    Rung,
    Search,
    TrialFindings,
    best_so_far,
    judge,
    rung_epochs,
)
from segan.runs import Run
from segan.search import Trial


def trial(name: str, *jaccards: float, why: str = "given up") -> TrialFindings:
    return TrialFindings(
        name=name,
        parameters={},
        jaccard=max(jaccards, default=0),
        threshold=0.5,
        epoch=1,
        epochs=len(jaccards),
        why=why,
        jaccards=tuple(enumerate(jaccards, 1)),
    )


def test_rungs_by_hand() -> None:
    assert rung_epochs(1, 3, 10) == [1, 3, 9]
    assert rung_epochs(2, 2, 8) == [2, 4]  # the last epoch judges nobody
    assert rung_epochs(1, 1.5, 4) == [1, 2, 3]  # 1, 1.5 and 2.25: the first whole epoch after
    assert rung_epochs(5, 3, 4) == []


def test_who_went_on_was_seen_again() -> None:
    trials = [trial("a", 0.1, 0.3, 0.5, why="finished"), trial("b", 0.4, 0.4), trial("c", 0.05)]
    assert judge(1, trials) == Rung(epoch=1, reached=3, went_on=2, cutoff=0.1)
    assert judge(2, trials) == Rung(epoch=2, reached=2, went_on=1, cutoff=0.3)
    assert judge(3, [trial("d", 0.1)]) == Rung(epoch=3, reached=0, went_on=0, cutoff=None)


def test_a_trial_is_worth_its_best_so_far(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    lines = [{"epoch": 1, "jaccard": 0.3}, {"epoch": 2}, {"epoch": 3, "jaccard": 0.2}]
    run.write_metrics([*lines, {"epoch": 4, "jaccard": 0.5}])
    assert best_so_far(Trial("t", {}, run)) == ((1, 0.3), (3, 0.3), (4, 0.5))


def test_trials_that_set_different_keys_share_a_table() -> None:
    point = {"loss.reading": "per_level", "logistic.final_k": 0.3}
    one, other = trial("a", 0.5), trial("b", 0.4)
    trials = (one.model_copy(update={"parameters": point}), other)
    search = Search(method="random", trials=trials, rungs=(), epochs=2, whole=2)
    assert parameters(search) == {"logistic.final_k": "final k", "loss.reading": "loss.reading"}
    drawn = search_chart(search)
    assert drawn is not None
    assert [name for _, name, _ in drawn.axes] == ["threshold", "Jaccard"]
